package main

import (
	"io"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	// The plugins that a cluster's DNS uses. CoreDNS' own list links the SDKs of several clouds.
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
)

// corednsPlugins are the plugins that are linked, in the order in which a query passes them: that of dnsserver.Directives. Debug,
// dnstap, metadata and transfer are there because others use them.
func corednsPlugins() []string {
	return []string{
		"metadata", "reload", "bind", "debug", "ready", "health", "prometheus", "errors", "log", "dnstap", "loadbalance", "cache",
		"transfer", "hosts", "kubernetes", "loop", "forward",
	}
}

// corednsFlags are the flags that package coremain adds to the process when it is linked. kube-proxy would show and take them.
func corednsFlags() []string {
	return []string{"conf", "dns.port", "log-format", "p", "pidfile", "plugins", "quiet", "version"}
}

func runCoreDNS(args []string, _, _ io.Writer) int {
	become("coredns", args)
	dnsserver.Directives = corednsPlugins()
	coremain.Run()
	return 0
}
