package main

import (
	"io"
	"strings"
	"sync"
)

// signalWriter says when a text has come.
type signalWriter struct {
	seen chan struct{}

	text string
	got  strings.Builder
	once sync.Once
}

func newSignalWriter(text string) *signalWriter {
	return &signalWriter{seen: make(chan struct{}), text: text}
}

// Write implements io.Writer.
func (w *signalWriter) Write(p []byte) (int, error) {
	w.got.Write(p)
	if strings.Contains(w.got.String(), w.text) {
		w.once.Do(func() { close(w.seen) })
	}
	return len(p), nil
}

// countWriter says when a number of bytes has come.
type countWriter struct {
	done chan struct{}
	left int64
}

func newCountWriter(size int64) *countWriter {
	return &countWriter{done: make(chan struct{}), left: size}
}

// Write implements io.Writer.
func (w *countWriter) Write(p []byte) (int, error) {
	if w.left > 0 && w.left <= int64(len(p)) {
		close(w.done)
	}
	w.left -= int64(len(p))
	return len(p), nil
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func zeros(size int64) io.Reader { return io.LimitReader(zeroReader{}, size) }
