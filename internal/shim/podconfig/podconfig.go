// Package podconfig reads the part of the kubelet's PodSandboxConfig that the VM of a pod depends on.
//
// With sandboxer = "shim" containerd hands the kubelet's message (k8s.io/cri-api, runtime.v1.PodSandboxConfig) through to the
// shim. Its Go package brings gRPC servers and a megabyte of descriptors; a dozen fields are wanted. So they are read from
// the wire format here. The field numbers are those of cri-api's api.proto and can't change:
//
//	PodSandboxConfig          2 hostname  4 dns_config  7 annotations  8 linux
//	  DNSConfig               1 servers  2 searches  3 options
//	  LinuxPodSandboxConfig   1 cgroup_parent  2 security_context  3 sysctls  4 overhead  5 resources
//	    LinuxSandboxSecurityContext   1 namespace_options
//	      NamespaceOption             1 network  2 pid  3 ipc      (0 pod, 1 container, 2 node)
//	    LinuxContainerResources       1 cpu_period  2 cpu_quota  4 memory_limit_in_bytes
//
// Unknown fields are skipped, as protobuf wants it. The message comes from the kubelet, but the strings in it from the pod's
// author, so everything is bounded.
package podconfig

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/encoding/protowire"
)

// TypeURL is the type of the Any that containerd wraps the message in.
const TypeURL = "runtime.v1.PodSandboxConfig"

const (
	maxBytes   = 1 << 20 // of the message
	maxEntries = 1024    // of a map or a list
)

// NamespaceMode says whose namespace a pod has.
type NamespaceMode uint64

// The modes of cri-api.
const (
	Pod       NamespaceMode = 0
	Container NamespaceMode = 1
	Node      NamespaceMode = 2
)

// Config is what is read of the message. Absent fields are zero.
type Config struct {
	Hostname     string
	DNS          DNS
	Annotations  map[string]string
	CgroupParent string
	Sysctls      map[string]string
	// Network, PID and IPC are the pod's namespace modes.
	Network, PID, IPC NamespaceMode
	// Resources is the sum of the containers' limits, Overhead the RuntimeClass's.
	Resources, Overhead Resources
}

// DNS is what the pod's resolv.conf says.
type DNS struct {
	Servers, Searches, Options []string
	// Given is whether the kubelet said anything about it.
	Given bool
}

// Resources are limits; 0 is none.
type Resources struct {
	CPUPeriod, CPUQuota int64 // µs
	MemoryBytes         int64
}

// Parse reads a message. What isn't one, or is beyond the bounds, is ErrInvalidArgument.
func Parse(message []byte) (Config, error) {
	var c Config
	if len(message) > maxBytes {
		return c, fmt.Errorf("pod sandbox configuration of %d bytes: more than %d: %w", len(message), maxBytes, errdefs.ErrInvalidArgument)
	}
	if err := c.parse(message); err != nil {
		return Config{}, fmt.Errorf("pod sandbox configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return c, nil
}

func (c *Config) parse(message []byte) error {
	return fields(message, func(number protowire.Number, f field) error {
		switch number {
		case 2:
			return f.text(&c.Hostname)
		case 4:
			c.DNS.Given = true
			return f.message(c.DNS.parse)
		case 7:
			return f.entry(&c.Annotations)
		case 8:
			return f.message(c.parseLinux)
		}
		return nil
	})
}

func (c *Config) parseLinux(number protowire.Number, f field) error {
	switch number {
	case 1:
		return f.text(&c.CgroupParent)
	case 2:
		return f.message(c.parseSecurity)
	case 3:
		return f.entry(&c.Sysctls)
	case 4:
		return f.message(c.Overhead.parse)
	case 5:
		return f.message(c.Resources.parse)
	}
	return nil
}

func (c *Config) parseSecurity(number protowire.Number, f field) error {
	if number != 1 {
		return nil
	}
	return f.message(func(number protowire.Number, f field) error {
		switch number {
		case 1:
			return f.number((*uint64)(&c.Network))
		case 2:
			return f.number((*uint64)(&c.PID))
		case 3:
			return f.number((*uint64)(&c.IPC))
		}
		return nil
	})
}

func (d *DNS) parse(number protowire.Number, f field) error {
	switch number {
	case 1:
		return f.item(&d.Servers)
	case 2:
		return f.item(&d.Searches)
	case 3:
		return f.item(&d.Options)
	}
	return nil
}

func (r *Resources) parse(number protowire.Number, f field) error {
	switch number {
	case 1:
		return f.signed(&r.CPUPeriod)
	case 2:
		return f.signed(&r.CPUQuota)
	case 4:
		return f.signed(&r.MemoryBytes)
	}
	return nil
}

// field is one value on the wire: bytes or a varint; other types are skipped.
type field struct {
	kind   protowire.Type
	bytes  []byte
	varint uint64
}

var errType = errors.New("a field has another type than cri-api's")

func (f field) text(to *string) error {
	if f.kind != protowire.BytesType {
		return errType
	}
	*to = string(f.bytes)
	return nil
}

// item adds one item of a repeated string.
func (f field) item(to *[]string) error {
	if len(*to) >= maxEntries {
		return fmt.Errorf("a list has more than %d items", maxEntries)
	}
	var s string
	err := f.text(&s)
	*to = append(*to, s)
	return err
}

func (f field) number(to *uint64) error {
	if f.kind != protowire.VarintType {
		return errType
	}
	*to = f.varint
	return nil
}

func (f field) signed(to *int64) error {
	var n uint64
	err := f.number(&n)
	*to = int64(n)
	return err
}

func (f field) message(each func(protowire.Number, field) error) error {
	if f.kind != protowire.BytesType {
		return errType
	}
	return fields(f.bytes, each)
}

// entry adds one entry of a map<string, string>: a message with the key as field 1 and the value as field 2.
func (f field) entry(to *map[string]string) error {
	var key, value string
	if err := f.message(func(number protowire.Number, f field) error {
		switch number {
		case 1:
			return f.text(&key)
		case 2:
			return f.text(&value)
		}
		return nil
	}); err != nil {
		return err
	}
	if *to == nil {
		*to = make(map[string]string)
	}
	if len(*to) >= maxEntries {
		return fmt.Errorf("a map has more than %d entries", maxEntries)
	}
	(*to)[key] = value
	return nil
}

// fields calls each for every field of a message, in the order of the wire: of a repeated scalar the last wins, as in
// protobuf.
func fields(message []byte, each func(protowire.Number, field) error) error {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		f := field{kind: kind}
		switch kind {
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			f.varint, n = protowire.ConsumeVarint(message)
		default:
			n = protowire.ConsumeFieldValue(number, kind, message)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		if err := each(number, f); err != nil {
			return fmt.Errorf("field %d: %w", number, err)
		}
	}
	return nil
}
