package main

import (
	"bytes"
	"flag"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"bulkhead.dev/bulkhead/kube/internal/multicall"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
)

func TestPrograms(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range programs() {
		if seen[p.Name] || p.Run == nil {
			t.Errorf("program %q is there twice, or can't run", p.Name)
		}
		seen[p.Name] = true
		if p.Module == "" {
			continue
		}
		if out, err := exec.Command("go", "list", "-m", p.Module).CombinedOutput(); err != nil {
			t.Errorf("%s takes its version from a module that go.mod doesn't have: %s", p.Name, out)
		}
	}
	var stdout, stderr bytes.Buffer
	if code := multicall.Main(programs(), []string{"bulkhead-kube", "kubeadm"}, nil, &stdout, &stderr); code != 2 {
		t.Errorf("kubeadm: exit code %d; want 2", code)
	}
	for name := range seen {
		if !strings.Contains(stderr.String(), name) {
			t.Errorf("what it says about kubeadm doesn't name %s: %s", name, stderr.String())
		}
	}
}

func TestCoreDNSPlugins(t *testing.T) {
	linked := map[string]bool{}
	for _, name := range caddy.ListPlugins()["others"] {
		linked[strings.TrimPrefix(name, "dns.")] = true
	}
	rest := dnsserver.Directives
	for _, name := range corednsPlugins() {
		if !linked[name] {
			t.Errorf("plugin %s is listed but not linked", name)
		}
		delete(linked, name)
		at := slices.Index(rest, name)
		if at < 0 {
			t.Fatalf("plugin %s comes earlier in CoreDNS' own order, or isn't there", name)
		}
		rest = rest[at+1:]
	}
	for name := range linked {
		if slices.Contains(dnsserver.Directives, name) {
			t.Errorf("plugin %s is linked but not listed: a Corefile can't use it", name)
		}
	}
}

// Next to those of CoreDNS, which the other programs are to be kept from, and the tests', the process has the flags of cadvisor only,
// which the kubelet and kube-proxy take. A new one of CoreDNS would have to be left out too.
func TestCoreDNSFlags(t *testing.T) {
	without(flag.CommandLine, corednsFlags()).VisitAll(func(f *flag.Flag) {
		cadvisor := strings.Contains(f.Name, "_") || strings.HasPrefix(f.Name, "containerd")
		if !cadvisor && !strings.HasPrefix(f.Name, "test.") {
			t.Errorf("there is a flag %s (%s): whose is it?", f.Name, f.Usage)
		}
	})
	for _, name := range corednsFlags() {
		if flag.Lookup(name) == nil {
			t.Errorf("there is no flag %s that would have to be left out", name)
		}
	}
}

func TestWithoutSharesValues(t *testing.T) {
	set := flag.NewFlagSet("all", flag.ContinueOnError)
	kept, left := set.String("kept", "a", ""), set.String("left", "a", "")
	rest := without(set, []string{"left"})
	if err := rest.Set("kept", "b"); err != nil || *kept != "b" {
		t.Errorf("the copy's flag didn't set the original's value: %q, %v", *kept, err)
	}
	if err := rest.Set("left", "b"); err == nil || *left != "a" {
		t.Errorf("the flag that was to be left out is there: %q", *left)
	}
}
