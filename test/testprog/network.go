package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// serve answers with the host's name, so that who asks a service learns which pod it came to.
func serve(ports []string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	for _, port := range ports {
		listener, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		conn, err := net.ListenPacket("udp", ":"+port)
		if err != nil {
			return err
		}
		go serveTCP(listener, host)
		go serveUDP(conn, host)
	}
	fmt.Println("serving")
	return pause()
}

func serveTCP(listener net.Listener, host string) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "testprog serve:", err)
			return
		}
		go func() {
			defer conn.Close()
			for lines := bufio.NewScanner(conn); lines.Scan(); {
				fmt.Fprintf(conn, "%s heard %s\n", host, lines.Text())
			}
		}()
	}
}

func serveUDP(conn net.PacketConn, host string) {
	buffer := make([]byte, 64<<10)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if err != nil {
			fmt.Fprintln(os.Stderr, "testprog serve:", err)
			return
		}
		answer := fmt.Sprintf("%s heard %s\n", host, strings.TrimSpace(string(buffer[:n])))
		if _, err := conn.WriteTo([]byte(answer), from); err != nil {
			fmt.Fprintln(os.Stderr, "testprog serve:", err)
		}
	}
}

func probe(arguments []string) error {
	limit, err := time.ParseDuration(arguments[0])
	if err != nil {
		return err
	}
	targets := arguments[1:]
	answers := make([]string, len(targets))
	var group sync.WaitGroup
	for i, target := range targets {
		group.Go(func() {
			host, err := ask(target, limit)
			if err != nil {
				answers[i] = "no " + err.Error()
				return
			}
			answers[i] = "ok " + host
		})
	}
	group.Wait()
	for i, target := range targets {
		fmt.Println(target, answers[i])
	}
	return nil
}

// ask returns the name of the host that answers at the target. Datagrams are sent again until the time is over: a lost one
// says nothing.
func ask(target string, limit time.Duration) (string, error) {
	network, address, ok := strings.Cut(target, ":")
	if !ok {
		return "", errors.New("not NETWORK:ADDRESS")
	}
	deadline := time.Now().Add(limit)
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	attempts := 1
	if strings.HasPrefix(network, "udp") {
		attempts = 4
	}
	line := ""
	for i := range attempts {
		if _, err = fmt.Fprintln(conn, "probe"); err != nil {
			return "", err
		}
		if err := conn.SetReadDeadline(deadline.Add(-limit * time.Duration(attempts-1-i) / time.Duration(attempts))); err != nil {
			return "", err
		}
		if line, err = bufio.NewReader(conn).ReadString('\n'); err == nil {
			break
		}
	}
	if err != nil {
		return "", err
	}
	host, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	if rest != "heard probe" {
		return "", fmt.Errorf("answer %q", line)
	}
	return host, nil
}

func lookup(names []string) error {
	for _, name := range names {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		addresses, err := net.DefaultResolver.LookupHost(ctx, name)
		cancel()
		if err != nil {
			fmt.Println(name, "no", err)
			continue
		}
		slices.Sort(addresses)
		fmt.Println(name, strings.Join(addresses, " "))
	}
	return nil
}
