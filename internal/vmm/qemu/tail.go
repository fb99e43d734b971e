package qemu

import (
	"io"
	"strings"
	"sync"
)

// tail keeps the last bytes that were written to it.
type tail struct {
	size int

	mu   sync.Mutex
	data []byte // a ring once it has size bytes
	next int    // where the oldest byte is, then
}

func newTail(size int) *tail { return &tail{size: size} }

// Write never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	p = p[max(0, len(p)-t.size):]
	if room := t.size - len(t.data); room > 0 {
		k := min(room, len(p))
		t.data = append(t.data, p[:k]...)
		p = p[k:]
	}
	for len(p) > 0 {
		k := copy(t.data[t.next:], p)
		t.next = (t.next + k) % t.size
		p = p[k:]
	}
	return n, nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.data[t.next:]) + string(t.data[:t.next])
}

// drain copies what comes from r to the tail until it ends; the channel is closed then.
func (t *tail) drain(r io.Reader) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Not io.Copy's 32 KiB: there are two of these per VM for all its life, and nothing here is in a hurry.
		buffer := make([]byte, 2048)
		for {
			n, err := r.Read(buffer)
			_, _ = t.Write(buffer[:n])
			if err != nil {
				return
			}
		}
	}()
	return done
}

// lastLines returns the end of a text, cut at a line's start if there is one, no longer than size.
func lastLines(text string, size int) string {
	text = strings.TrimSpace(text)
	if len(text) <= size {
		return text
	}
	text = text[len(text)-size:]
	if _, rest, ok := strings.Cut(text, "\n"); ok {
		text = rest
	}
	return text
}
