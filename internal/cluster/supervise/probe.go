package supervise

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// probeTimeout is how long a process may take to answer.
const probeTimeout = 5 * time.Second

// pause is how long to wait before the next probe. It is short at first, as most processes are ready soon.
func pause(tries int, ready bool) time.Duration {
	switch {
	case ready:
		return 10 * time.Second
	case tries < 60:
		return 50 * time.Millisecond
	case tries < 120:
		return 250 * time.Millisecond
	default:
		return time.Second
	}
}

// check returns why the process isn't ready. A missing probe is content.
func (p *Probe) check(ctx context.Context) error {
	if p == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	u, err := url.Parse(p.URL)
	if err != nil {
		return err
	}
	switch u.Scheme {
	case "tcp":
		return connect(ctx, "tcp", u.Host)
	case "unix":
		return connect(ctx, "unix", u.Path)
	default:
		return p.get(ctx)
	}
}

func connect(ctx context.Context, network, address string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	return c.Close()
}

// get reads the CA each time: certificates are renewed while processes run.
func (p *Probe) get(ctx context.Context) error {
	var config tls.Config
	if p.CA != "" {
		pem, err := os.ReadFile(p.CA)
		if err != nil {
			return fmt.Errorf("read CA: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("there is no certificate in CA file %s: %w", p.CA, errdefs.ErrInvalidArgument)
		}
	}
	client := http.Client{
		Transport:     &http.Transport{TLSClientConfig: &config, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL, http.NoBody)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(response.Body, 512)) // for people; the status is what counts
	if response.StatusCode < 200 || response.StatusCode > 299 {
		return fmt.Errorf("GET %s: %s: %s: %w", p.URL, response.Status, strings.TrimSpace(string(body)), errdefs.ErrUnavailable)
	}
	return nil
}
