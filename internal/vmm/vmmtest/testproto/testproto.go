// Package testproto is what the conformance suite of package vmmtest and its guest program say to each other.
//
// Requests and responses are JSON objects, one after the other, on the agent's channel: the suite sends a [Request] and
// reads one [Response]. The guest's half is [Serve] over a [Machine]; the suite's half is a [Client]. It is a tool for
// tests: it trusts both sides.
package testproto

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Operations of a Request.
const (
	OpEcho  = "echo"  // Data comes back
	OpInfo  = "info"  // Info
	OpDisks = "disks" // Disks
	OpRead  = "read"  // Length bytes at Offset of the disk
	OpWrite = "write" // Data to Offset of the disk
	OpPrint = "print" // Data to the console
	OpPanic = "panic" // crash the kernel; there is no response
	OpFill  = "fill"  // touch Length bytes of memory and give them back
)

// Request is what the suite asks.
type Request struct {
	Op     string
	LUN    int    `json:",omitempty"`
	Offset int64  `json:",omitempty"`
	Length int    `json:",omitempty"`
	Data   []byte `json:",omitempty"`
}

// Response is what the guest answers.
type Response struct {
	Error string `json:",omitempty"`
	Data  []byte `json:",omitempty"`
	Disks []Disk `json:",omitempty"`
	Info  *Info  `json:",omitempty"`
}

// Disk is a disk as the guest sees it.
type Disk struct {
	LUN      int
	Bytes    int64
	ReadOnly bool
}

// Info is what the guest knows about its machine.
type Info struct {
	CPUs        int
	MemoryBytes int64 // what the kernel has, less than the machine's
	CommandLine string
	NICs        []NIC
	Uptime      time.Duration // since the kernel's start
	Notes       string        // for people who look into timings
}

// NIC is a network device as the guest sees it.
type NIC struct {
	MAC string
	MTU int
}

// Machine is what the guest program runs on.
type Machine interface {
	Info() (Info, error)
	Disks() ([]Disk, error)
	Read(lun int, offset int64, length int) ([]byte, error)
	Write(lun int, offset int64, data []byte) error
	Print(data []byte) error
	Fill(length int) error
	Panic()
}

// Serve answers requests until the channel ends.
func Serve(channel io.ReadWriter, machine Machine) error {
	decoder, encoder := json.NewDecoder(channel), json.NewEncoder(channel)
	for {
		var request Request
		if err := decoder.Decode(&request); err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		if err := encoder.Encode(answer(machine, request)); err != nil {
			return fmt.Errorf("write response: %w", err)
		}
	}
}

func answer(machine Machine, request Request) (response Response) {
	var err error
	switch request.Op {
	case OpEcho:
		response.Data = request.Data
	case OpInfo:
		var info Info
		info, err = machine.Info()
		response.Info = &info
	case OpDisks:
		response.Disks, err = machine.Disks()
	case OpRead:
		response.Data, err = machine.Read(request.LUN, request.Offset, request.Length)
	case OpWrite:
		err = machine.Write(request.LUN, request.Offset, request.Data)
	case OpPrint:
		err = machine.Print(request.Data)
	case OpFill:
		err = machine.Fill(request.Length)
	case OpPanic:
		machine.Panic()
	default:
		err = fmt.Errorf("unknown operation %q", request.Op)
	}
	if err != nil {
		response.Error = err.Error()
	}
	return response
}

// Client is the suite's half.
type Client struct {
	conn net.Conn

	mu      sync.Mutex // one request at a time
	encoder *json.Encoder
	decoder *json.Decoder
}

// NewClient returns a client on the connection that Dial returned.
func NewClient(conn net.Conn) *Client {
	return &Client{conn: conn, encoder: json.NewEncoder(conn), decoder: json.NewDecoder(conn)}
}

// Do sends a request and waits for its response. When ctx ends the connection is of no more use.
func (c *Client) Do(ctx context.Context, request Request) (Response, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var response Response
	// A pipe in memory has no buffer: write and read at the same time.
	sent := make(chan error, 1)
	go func() { sent <- c.encoder.Encode(request) }()
	err := c.decoder.Decode(&response)
	if err != nil {
		_ = c.conn.SetDeadline(time.Unix(1, 0)) // nobody will read the rest of the request
	}
	if err := errors.Join(err, <-sent); err != nil {
		return Response{}, fmt.Errorf("ask the guest to %s: %w", request.Op, errors.Join(err, ctx.Err()))
	}
	if response.Error != "" {
		return Response{}, fmt.Errorf("ask the guest to %s: it says: %s", request.Op, response.Error)
	}
	return response, nil
}
