package podconfig

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
)

func message(number protowire.Number, parts ...[]byte) []byte {
	var inner []byte
	for _, p := range parts {
		inner = append(inner, p...)
	}
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), inner)
}

func text(number protowire.Number, s string) []byte { return message(number, []byte(s)) }

func varint(number protowire.Number, n int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, number, protowire.VarintType), uint64(n))
}

func pair(number protowire.Number, key, value string) []byte {
	return message(number, text(1, key), text(2, value))
}

func join(parts ...[]byte) []byte {
	var all []byte
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// full is a configuration with every field that is read, and some that are not.
func full() []byte {
	return join(
		message(1, text(1, "web"), text(2, "uid"), text(3, "default")),
		text(2, "web-0"),
		text(3, "/var/log/pods/x"),
		message(4, text(1, "10.0.0.10"), text(2, "svc.cluster.local"), text(2, "cluster.local"), text(3, "ndots:5")),
		pair(6, "app", "web"),
		pair(7, "a", "1"), pair(7, "b", ""),
		message(8,
			text(1, "/kubepods/podx"),
			message(2, message(1, varint(1, 0), varint(2, 1), varint(3, 2)), varint(6, 1)),
			pair(3, "net.core.somaxconn", "1024"),
			message(4, varint(1, 100000), varint(2, 25000), varint(4, 64<<20)),
			message(5, varint(1, 100000), varint(2, -1), varint(3, 1024), varint(4, 256<<20)),
		),
	)
}

func TestParse(t *testing.T) {
	got, err := Parse(full())
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Hostname:     "web-0",
		DNS:          DNS{Given: true, Servers: []string{"10.0.0.10"}, Searches: []string{"svc.cluster.local", "cluster.local"}, Options: []string{"ndots:5"}},
		Annotations:  map[string]string{"a": "1", "b": ""},
		CgroupParent: "/kubepods/podx",
		Sysctls:      map[string]string{"net.core.somaxconn": "1024"},
		Network:      Pod, PID: Container, IPC: Node,
		Overhead:  Resources{CPUPeriod: 100000, CPUQuota: 25000, MemoryBytes: 64 << 20},
		Resources: Resources{CPUPeriod: 100000, CPUQuota: -1, MemoryBytes: 256 << 20},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseEmpty(t *testing.T) {
	got, err := Parse(nil)
	if diff := cmp.Diff(Config{}, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestParseRefuses(t *testing.T) {
	var many []byte
	for i := range maxEntries + 1 {
		many = append(many, pair(7, string(rune('a'+i%26))+string(rune(0x4e00+i)), "")...)
	}
	for name, bytes := range map[string][]byte{
		"cut":              full()[:60],
		"wrong type":       varint(2, 1),
		"wrong type of 8":  varint(8, 1),
		"wrong type below": message(8, varint(1, 1)),
		"map of numbers":   varint(7, 1),
		"DNS of numbers":   message(4, varint(1, 1)),
		"too big":          make([]byte, maxBytes+1),
		"too many entries": many,
		"no field 0":       {0},
	} {
		if _, err := Parse(bytes); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v, want invalid argument", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(full())
	f.Add([]byte{})
	f.Add(full()[:60])
	f.Fuzz(func(t *testing.T, message []byte) {
		c, err := Parse(message)
		if err != nil && !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("an error of no class: %v", err)
		}
		if len(c.Annotations) > maxEntries || len(c.Sysctls) > maxEntries {
			t.Error("a map grew beyond its bound")
		}
	})
}
