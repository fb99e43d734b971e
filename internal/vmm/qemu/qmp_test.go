package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// peer is the VMM's end of a control connection.
type peer struct {
	t    *testing.T
	conn *net.UnixConn
	in   *bufio.Scanner
}

func newPeer(t *testing.T) (*qmp, *peer) {
	t.Helper()
	ours, file, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.FileConn(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	q := newQMP(ours)
	p := &peer{t: t, conn: conn.(*net.UnixConn), in: bufio.NewScanner(conn)}
	t.Cleanup(func() { q.close(); conn.Close() })
	return q, p
}

func (p *peer) say(lines ...string) {
	if _, err := io.WriteString(p.conn, strings.Join(lines, "\n")+"\n"); err != nil {
		p.t.Error(err)
	}
}

// hear reads the next command.
func (p *peer) hear() (c qmpCommand) {
	if !p.in.Scan() {
		p.t.Errorf("no command: %v", p.in.Err())
		return c
	}
	if err := json.Unmarshal(p.in.Bytes(), &c); err != nil {
		p.t.Error(err)
	}
	return c
}

func TestNegotiate(t *testing.T) {
	q, p := newPeer(t)
	go func() {
		p.say(`{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": ["oob"]}}`)
		if c := p.hear(); c.Execute != "qmp_capabilities" || c.ID != 1 {
			t.Errorf("command %+v", c)
		}
		p.say(`{"QMP": {}}`, `{"event": "RESUME"}`, `{"return": {}, "id": 7}`, `{"return": {}, "id": 1}`)
	}()
	if err := q.negotiate(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestExecute(t *testing.T) {
	tests := map[string]struct {
		answers []string
		is      func(error) bool // nil: no error
		text    string
	}{
		"result":               {answers: []string{`{"return": {"value": 42}, "id": 1}`}},
		"others first":         {answers: []string{`{"return": {"value": 1}, "id": 99}`, `{"event": "X", "data": {}}`, `{"return": {"value": 42}, "id": 1}`}},
		"error":                {answers: []string{`{"error": {"class": "GenericError", "desc": "no\u001b[2J way"}, "id": 1}`}, is: errdefs.IsUnknown, text: `"no\x1b[2J way"`},
		"not found":            {answers: []string{`{"error": {"class": "DeviceNotFound", "desc": "gone"}, "id": 1}`}, is: errdefs.IsNotFound},
		"long error":           {answers: []string{`{"error": {"class": "", "desc": "` + strings.Repeat("x", 100_000) + `"}, "id": 1}`}, is: errdefs.IsUnknown, text: "…"},
		"result of other type": {answers: []string{`{"return": [], "id": 1}`}, is: func(err error) bool { return err != nil }},
		"no JSON":              {answers: []string{`hello`}, is: errdefs.IsUnavailable},
		"other type":           {answers: []string{`{"id": "one"}`}, is: errdefs.IsUnavailable},
		"deep":                 {answers: []string{strings.Repeat("[", 100_000)}, is: errdefs.IsUnavailable},
		"endless line":         {answers: []string{strings.Repeat("x", maxMessage+1)}, is: errdefs.IsUnavailable},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			q, p := newPeer(t)
			go func() {
				p.hear()
				// A connection that was given up doesn't take all of it.
				_, _ = io.WriteString(p.conn, strings.Join(tc.answers, "\n")+"\n")
			}()
			var out struct{ Value int }
			err := q.execute(t.Context(), "query", map[string]any{"a": 1}, nil, &out)
			if tc.is == nil {
				if err != nil || out.Value != 42 {
					t.Errorf("execute: %+v, %v", out, err)
				}
				return
			}
			if !tc.is(err) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("execute: %v", err)
			}
			if len(err.Error()) > 2*maxText+200 {
				t.Errorf("an error text of %d bytes", len(err.Error()))
			}
		})
	}
}

func TestExecuteGivesUp(t *testing.T) {
	q, _ := newPeer(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := q.execute(ctx, "query", nil, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("execute without an answer: %v, want DeadlineExceeded", err)
	}
	if len(q.answers) != 0 {
		t.Errorf("the command still waits: %v", q.answers)
	}
	q.conn.Close()
	if err := q.execute(t.Context(), "query", nil, nil, nil); !errdefs.IsUnavailable(err) {
		t.Errorf("execute on a closed connection: %v, want ErrUnavailable", err)
	}
}

func TestExecuteSendsFile(t *testing.T) {
	q, p := newPeer(t)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	go func() {
		data, oob := make([]byte, 1024), make([]byte, 128)
		n, oobn, _, _, err := p.conn.ReadMsgUnix(data, oob)
		if err != nil || !strings.Contains(string(data[:n]), `"add-fd"`) {
			t.Errorf("command %q, %v", data[:n], err)
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(messages) != 1 {
			t.Errorf("control messages %v, %v", messages, err)
			return
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			t.Errorf("descriptors %v, %v", fds, err)
			return
		}
		unix.Close(fds[0])
		p.say(`{"return": {"fdset-id": 3, "fd": 20}, "id": 1}`)
	}()
	var added struct {
		FDSet int64 `json:"fdset-id"`
	}
	if err := q.execute(t.Context(), "add-fd", nil, file, &added); err != nil || added.FDSet != 3 {
		t.Errorf("add-fd: %+v, %v", added, err)
	}
}

func TestEvents(t *testing.T) {
	q, p := newPeer(t)
	deleted, _ := q.expectDeleted("disk1-1")
	other, forget := q.expectDeleted("disk2-2")
	p.say(
		`{"event": "DEVICE_DELETED", "data": {"path": "/machine/peripheral/disk2"}}`,
		`{"event": "DEVICE_DELETED", "data": {"device": "nobody's"}}`,
		`{"event": "VSERPORT_CHANGE", "data": {"id": "other", "open": true}}`,
		`{"event": "VSERPORT_CHANGE", "data": {"id": "agent0", "open": false}}`,
		`{"event": "VSERPORT_CHANGE", "data": {"id": "agent0", "open": true}}`,
		`{"event": "VSERPORT_CHANGE", "data": {"id": "agent0", "open": true}}`,
		`{"event": "DEVICE_DELETED", "data": {"device": "disk1-1"}}`,
		`{"event": "DEVICE_DELETED", "data": {"device": "disk1-1"}}`,
		`{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}`,
	)
	<-deleted
	<-q.opened
	select {
	case <-other:
		t.Error("disk2-2 is said to be deleted")
	default:
	}
	forget()
	p.conn.Close()
	<-q.done
	if got := q.shutdownReason(); got != "guest-reset" {
		t.Errorf("reason %q", got)
	}
	if len(q.deleted) != 0 {
		t.Errorf("waits that nobody needs: %v", q.deleted)
	}
}

// FuzzReceive reads what a VMM may say that a guest has taken over.
func FuzzReceive(f *testing.F) {
	f.Add([]byte(`{"QMP": {"version": {}}}` + "\n" + `{"QMP": null}` + "\n" + `{"return": {"fdset-id": 3}, "id": 1}` + "\n"))
	f.Add([]byte(`{"event": "DEVICE_DELETED", "data": {"device": "d"}}` + "\n"))
	f.Add([]byte(`{"event": "VSERPORT_CHANGE", "data": {"id": "agent0", "open": true}}` + "\r\n\n"))
	f.Add([]byte(`{"error": {"class": "DeviceNotFound", "desc": "x"}, "id": 1}` + "\n" + `{"id": 1}` + "\n"))
	f.Add([]byte(`{"event": "SHUTDOWN", "data": {"reason": "guest-reset"}}` + "\n[{"))
	f.Fuzz(func(t *testing.T, data []byte) {
		q := &qmp{
			ready: make(chan struct{}), opened: make(chan struct{}), done: make(chan struct{}),
			answers: map[uint64]chan qmpReply{1: make(chan qmpReply, 1)},
			deleted: make(map[string]chan struct{}),
		}
		answer := q.answers[1]
		q.expectDeleted("d")
		if err := q.receive(strings.NewReader(string(data))); err == nil {
			t.Error("the end of the messages is no error")
		}
		select {
		case m := <-answer:
			var out struct {
				FDSet int64 `json:"fdset-id"`
			}
			if err := m.decode(&out); err != nil && len(err.Error()) > 8*maxText {
				t.Errorf("an error text of %d bytes", len(err.Error()))
			}
		default:
		}
	})
}
