package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// maxMessage bounds a message of the VMM. The greeting and the answers that the driver asks for are far smaller.
	maxMessage = 1 << 20
	// maxText bounds what an error text quotes of the VMM's.
	maxText = 512
	// qmpPatience bounds a command when its context doesn't: a VMM that a guest has taken over may never answer.
	qmpPatience = 30 * time.Second
)

// qmp is a client of QEMU's machine protocol: JSON objects, one a line.
//
//	← {"QMP": {"version": …}}                                       greeting
//	→ {"execute": "qmp_capabilities", "id": 1}                      command
//	← {"return": {}, "id": 1}  or  {"error": {"class", "desc"}, "id": 1}
//	← {"event": "DEVICE_DELETED", "data": {"device": "d1"}, …}      at any time
//
// A guest may have taken over the process at the other end. What it sends is bounded, what nobody asked for is dropped, and
// what is no message ends the connection.
type qmp struct {
	conn   *net.UnixConn
	ready  chan struct{} // closed when the greeting has come
	opened chan struct{} // closed when the guest has opened the agent's channel
	done   chan struct{} // closed when no more messages come

	fds   sync.Mutex // held from sending a descriptor to the answer: QEMU keeps the last one only
	write sync.Mutex // held while writing to conn

	mu       sync.Mutex
	greeted  bool
	isOpen   bool                     // opened is closed
	last     uint64                   // id of the last command
	answers  map[uint64]chan qmpReply // commands that wait
	deleted  map[string]chan struct{} // devices whose end is waited for
	shutdown string                   // the reason in the SHUTDOWN event
	err      error                    // why no more messages come
}

// qmpReply is a message of the VMM; which fields are set says what it is.
type qmpReply struct {
	QMP    *struct{}       `json:"QMP"`
	ID     *uint64         `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *qmpError       `json:"error"`
	Event  string          `json:"event"`
	Data   struct {
		Device string `json:"device"`
		Reason string `json:"reason"`
		ID     string `json:"id"`
		Open   bool   `json:"open"`
	} `json:"data"`
}

type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

type qmpCommand struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}

// newQMP starts to read messages. Close ends that.
func newQMP(conn *net.UnixConn) *qmp {
	q := &qmp{
		conn:    conn,
		ready:   make(chan struct{}),
		opened:  make(chan struct{}),
		done:    make(chan struct{}),
		answers: make(map[uint64]chan qmpReply),
		deleted: make(map[string]chan struct{}),
	}
	go func() {
		err := q.receive(conn)
		q.mu.Lock()
		q.err = err
		q.mu.Unlock()
		close(q.done)
	}()
	return q
}

func (q *qmp) close() {
	q.conn.Close()
	<-q.done
}

// receive reads messages until there are no more, and says why.
func (q *qmp) receive(r io.Reader) error {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, maxMessage)
	for scanner.Scan() {
		var m qmpReply
		if err := json.Unmarshal(scanner.Bytes(), &m); err != nil {
			return fmt.Errorf("read message of the VMM: %w", err)
		}
		q.dispatch(m)
	}
	if err := scanner.Err(); err != nil {
		return fmt.Errorf("read message of the VMM: %w", err)
	}
	return io.EOF
}

func (q *qmp) dispatch(m qmpReply) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case m.QMP != nil:
		if !q.greeted {
			q.greeted = true
			close(q.ready)
		}
	case m.Event == "DEVICE_DELETED":
		if waiting, ok := q.deleted[m.Data.Device]; ok {
			delete(q.deleted, m.Data.Device)
			close(waiting)
		}
	case m.Event == "VSERPORT_CHANGE":
		if m.Data.ID == agentDevice && m.Data.Open && !q.isOpen {
			q.isOpen = true
			close(q.opened)
		}
	case m.Event == "SHUTDOWN":
		q.shutdown = clip(m.Data.Reason)
	case m.ID != nil:
		if waiting, ok := q.answers[*m.ID]; ok {
			delete(q.answers, *m.ID)
			waiting <- m // has room for it
		}
	}
}

// negotiate waits for the greeting and enters command mode.
func (q *qmp) negotiate(ctx context.Context) error {
	select {
	case <-q.ready:
	case <-q.done:
		return q.over()
	case <-ctx.Done():
		return fmt.Errorf("wait for the VMM's greeting: %w", ctx.Err())
	}
	return q.execute(ctx, "qmp_capabilities", nil, nil, nil)
}

// execute runs a command. A file is sent along with it; the result goes into out, if any.
func (q *qmp) execute(ctx context.Context, command string, arguments any, file *os.File, out any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, qmpPatience, fmt.Errorf("the VMM didn't answer within %v: %w", qmpPatience, errdefs.ErrUnavailable))
	defer cancel()
	if file != nil {
		q.fds.Lock()
		defer q.fds.Unlock()
	}
	answer := make(chan qmpReply, 1)
	q.mu.Lock()
	q.last++
	id := q.last
	q.answers[id] = answer
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		delete(q.answers, id)
		q.mu.Unlock()
	}()

	if err := q.send(qmpCommand{Execute: command, Arguments: arguments, ID: id}, file); err != nil {
		return fmt.Errorf("send %s: %w", command, err)
	}
	select {
	case m := <-answer:
		if err := m.decode(out); err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		return nil
	case <-q.done:
		return fmt.Errorf("%s: %w", command, q.over())
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", command, context.Cause(ctx))
	}
}

func (q *qmp) send(command qmpCommand, file *os.File) error {
	data, err := json.Marshal(command)
	if err != nil {
		return err
	}
	data = append(data, '\n')
	q.write.Lock()
	defer q.write.Unlock()
	if err := q.conn.SetWriteDeadline(time.Now().Add(qmpPatience)); err != nil {
		return errors.Join(err, errdefs.ErrUnavailable)
	}
	var sent int
	if file != nil {
		sent, _, err = q.conn.WriteMsgUnix(data, unix.UnixRights(int(file.Fd())), nil)
	}
	if err == nil {
		_, err = q.conn.Write(data[sent:])
	}
	if err != nil {
		// Half a command may be out. There is no way back to a known state.
		q.conn.Close()
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	return nil
}

// decode turns an answer into an error or a result.
func (m qmpReply) decode(out any) error {
	if m.Error != nil {
		var class error = errdefs.ErrUnknown
		if m.Error.Class == "DeviceNotFound" {
			class = errdefs.ErrNotFound
		}
		return fmt.Errorf("the VMM says %q: %w", clip(m.Error.Desc), class)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, out); err != nil {
		return fmt.Errorf("read answer of the VMM: %w", err)
	}
	return nil
}

// expectDeleted must be called before the command that deletes the device. The channel is closed when it is gone; forget
// gives the wait up.
func (q *qmp) expectDeleted(device string) (deleted <-chan struct{}, forget func()) {
	waiting := make(chan struct{})
	q.mu.Lock()
	defer q.mu.Unlock()
	q.deleted[device] = waiting
	return waiting, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.deleted[device] == waiting {
			delete(q.deleted, device)
		}
	}
}

// shutdownReason is what the VMM said about the guest's end, "" if nothing.
func (q *qmp) shutdownReason() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.shutdown
}

func (q *qmp) over() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return fmt.Errorf("the VMM's control connection has ended (%w): %w", q.err, errdefs.ErrUnavailable)
}

func clip(s string) string {
	if len(s) > maxText {
		return s[:maxText] + "…"
	}
	return s
}
