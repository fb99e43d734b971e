// Testprog is what the suite's images hold beside busybox: a static program with the duties that a shell is bad at. Its
// first argument names one; each prints what it found, so that a test can compare, and exits with 1 when it could not.
//
//	pause                     wait until SIGTERM or SIGINT comes, exit 0
//	exit CODE                 exit with CODE
//	signals                   print "ready", then the name of every signal that comes; exit 0 after SIGTERM
//	alloc MIB                 touch that much memory, print "touched", wait
//	fork N                    start N children that wait, print "forked", wait
//	pattern BYTES             write that many bytes of a fixed pattern to stdout
//	flood BYTES               write that many bytes to stderr, then "end" to stdout
//	listen ADDRESS            serve TCP: answer every line with "heard LINE"; print "listening"
//	dial ADDRESS LINE         connect, send LINE, print the answer
//	serve PORT...             answer lines over TCP and datagrams over UDP on each port of all addresses: "HOSTNAME heard
//	                          LINE"; print "serving"; exit 0 after SIGTERM
//	probe TIME TARGET...      ask servers at NETWORK:ADDRESS, such as tcp6:[::1]:80 or udp:web.ns:53, all at once; print
//	                          "TARGET ok HOSTNAME" or "TARGET no REASON" for each
//	lookup NAME...            print "NAME ADDRESS..." for each, sorted, or "NAME no REASON"
//	syscalls                  try forbidden system calls, print what each answered
//	shm-write KEY TEXT        put TEXT into the System V shared memory segment KEY and wait
//	shm-read KEY              print the text that is in it
//	xattr PATH NAME           print the value of an extended attribute
//	tty-size                  print "ROWS COLUMNS" of the terminal on stdout, and again each time it changes
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "testprog: no duty given")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "testprog %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

// some is the number of arguments of duties that take any number but none.
const some = -1

func run(duty string, arguments []string) error {
	duties := map[string]struct {
		arguments int
		run       func([]string) error
	}{
		"pause":     {0, func([]string) error { return pause() }},
		"exit":      {1, exit},
		"signals":   {0, signals},
		"alloc":     {1, alloc},
		"fork":      {1, fork},
		"pattern":   {1, pattern},
		"flood":     {1, flood},
		"listen":    {1, listen},
		"dial":      {2, dial},
		"serve":     {some, serve},
		"probe":     {some, probe},
		"lookup":    {some, lookup},
		"syscalls":  {0, syscalls},
		"shm-write": {2, shmWrite},
		"shm-read":  {1, shmRead},
		"xattr":     {2, xattr},
		"tty-size":  {0, ttySize},
	}
	d, ok := duties[duty]
	if !ok {
		return errors.New("no such duty")
	}
	if d.arguments == some && len(arguments) == 0 {
		return errors.New("takes arguments, got none")
	}
	if d.arguments != some && len(arguments) != d.arguments {
		return fmt.Errorf("takes %d arguments, got %d", d.arguments, len(arguments))
	}
	return d.run(arguments)
}

func pause() error {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGTERM, unix.SIGINT)
	<-ended
	return nil
}

func exit(arguments []string) error {
	code, err := strconv.Atoi(arguments[0])
	if err != nil {
		return err
	}
	os.Exit(code)
	return nil
}

func signals([]string) error {
	received := make(chan os.Signal, 64)
	signal.Notify(received, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGTERM, unix.SIGCONT)
	fmt.Println("ready")
	for s := range received {
		fmt.Println(unix.SignalName(s.(unix.Signal)))
		if s == unix.SIGTERM {
			return nil
		}
	}
	return nil
}

func alloc(arguments []string) error {
	mib, err := strconv.Atoi(arguments[0])
	if err != nil {
		return err
	}
	// Piece by piece, so that the kernel's killer comes by way of the limit and not of one impossible mapping.
	var held [][]byte
	for range mib {
		piece := make([]byte, 1<<20)
		for i := 0; i < len(piece); i += 512 {
			piece[i] = byte(i) | 1
		}
		held = append(held, piece)
	}
	fmt.Println("touched")
	err = pause()
	fmt.Fprintln(io.Discard, held)
	return err
}

func fork(arguments []string) error {
	count, err := strconv.Atoi(arguments[0])
	if err != nil {
		return err
	}
	for range count {
		if err := exec.Command("/proc/self/exe", "pause").Start(); err != nil {
			return err
		}
	}
	fmt.Println("forked")
	return pause()
}

// pattern writes bytes that no repetition of a block or loss of one goes unnoticed in: each 8 bytes hold their own number.
func pattern(arguments []string) error {
	total, err := strconv.ParseInt(arguments[0], 10, 64)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(os.Stdout, 64<<10)
	for written := int64(0); written < total; {
		line := fmt.Appendf(nil, "%07x\n", written/8)
		line = line[:min(int64(len(line)), total-written)]
		if _, err := out.Write(line); err != nil {
			return err
		}
		written += int64(len(line))
	}
	return out.Flush()
}

func flood(arguments []string) error {
	total, err := strconv.Atoi(arguments[0])
	if err != nil {
		return err
	}
	block := bytes.Repeat([]byte("x"), 64<<10)
	for total > 0 {
		n, err := os.Stderr.Write(block[:min(total, len(block))])
		if err != nil {
			return err
		}
		total -= n
	}
	fmt.Println("end")
	return nil
}

func listen(arguments []string) error {
	listener, err := net.Listen("tcp", arguments[0])
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			for lines := bufio.NewScanner(conn); lines.Scan(); {
				fmt.Fprintf(conn, "heard %s\n", lines.Text())
			}
		}()
	}
}

func dial(arguments []string) error {
	conn, err := net.DialTimeout("tcp", arguments[0], 30*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, arguments[1]); err != nil {
		return err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	fmt.Print(answer)
	return err
}

func syscalls([]string) error {
	calls := []struct {
		name string
		call func() error
	}{
		{"mount", func() error { return unix.Mount("none", "/tmp", "tmpfs", 0, "") }},
		{"unshare", func() error { return unix.Unshare(unix.CLONE_NEWNS) }},
		{"keyctl", func() error { _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false); return err }},
		{"swapoff", func() error {
			path, _ := unix.BytePtrFromString("/nowhere")
			_, _, errno := unix.Syscall(unix.SYS_SWAPOFF, uintptr(unsafe.Pointer(path)), 0, 0)
			return errno
		}},
		{"chroot", func() error { return unix.Chroot("/") }},
		{"mknod", func() error { return unix.Mknod("/tmp/node", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) }},
		{"settimeofday", func() error { now := unix.Timeval{Sec: 1}; return unix.Settimeofday(&now) }},
		{"reboot", func() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) }},
	}
	for _, c := range calls {
		answer := "ok"
		var errno unix.Errno
		if err := c.call(); errors.As(err, &errno) && errno != 0 {
			answer = unix.ErrnoName(errno)
		}
		fmt.Printf("%s %s\n", c.name, answer)
	}
	return nil
}

const segmentSize = 4096

func attach(key string, flags int) ([]byte, error) {
	number, err := strconv.Atoi(key)
	if err != nil {
		return nil, err
	}
	id, err := unix.SysvShmGet(number, segmentSize, flags)
	if err != nil {
		return nil, fmt.Errorf("get segment %d: %w", number, err)
	}
	return unix.SysvShmAttach(id, 0, 0)
}

func shmWrite(arguments []string) error {
	segment, err := attach(arguments[0], unix.IPC_CREAT|0o600)
	if err != nil {
		return err
	}
	copy(segment, arguments[1])
	fmt.Println("written")
	return pause()
}

func shmRead(arguments []string) error {
	segment, err := attach(arguments[0], 0)
	if err != nil {
		return err
	}
	text, _, _ := bytes.Cut(segment, []byte{0})
	fmt.Println(string(text))
	return nil
}

func xattr(arguments []string) error {
	value := make([]byte, 4096)
	n, err := unix.Lgetxattr(arguments[0], arguments[1], value)
	if err != nil {
		return err
	}
	fmt.Println(string(value[:n]))
	return nil
}

func ttySize([]string) error {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGTERM)
	for {
		size, err := unix.IoctlGetWinsize(1, unix.TIOCGWINSZ)
		if err != nil {
			return err
		}
		fmt.Printf("%d %d\n", size.Row, size.Col)
		select {
		case <-changed:
		case <-ended:
			return nil
		}
	}
}
