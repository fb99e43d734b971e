package image

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// Program gives an image's files for one static program, which lies in the root directory under its own name, and the
// entrypoint that runs it. One that needs a loader is refused: there would be none.
func Program(file string) (tree Tree, entrypoint []string, err error) {
	if err := static(file); err != nil {
		return nil, nil, err
	}
	name := cleanPath(filepath.Base(file))
	return Tree{
		{Path: name, Mode: 0o755, Source: file},
		{Path: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
	}, []string{"/" + name}, nil
}

// static refuses what is no static ELF program.
func static(file string) error {
	f, err := elf.Open(file)
	if os.IsNotExist(err) {
		return errdefs.ErrNotFound.WithMessage(err.Error())
	}
	if err != nil {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%s is no program: %v", file, err))
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%s is not static: in an image of its own it would find no loader and no libraries", file))
		}
	}
	return nil
}

// BusyBox gives the files of a small system: a static BusyBox (Debian's package busybox-static), each of its applets as a
// hard link in /bin, and the directories and accounts that programs expect.
func BusyBox(ctx context.Context, binary string) (Tree, error) {
	if err := static(binary); err != nil {
		return nil, err
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, binary, "--list")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its applets: %w: %s", binary, err, bytes.TrimSpace(stderr.Bytes()))
	}
	const shared = fs.ModeDir | fs.ModeSticky | 0o777
	tree := Tree{
		{Path: "bin/busybox", Mode: 0o755, Source: binary},
		{Path: "dev", Mode: fs.ModeDir | 0o755},
		{Path: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\n")},
		{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/sh\n" +
			"daemon:x:1:1:daemon:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n")},
		{Path: "home", Mode: fs.ModeDir | 0o755},
		{Path: "proc", Mode: fs.ModeDir | 0o755},
		{Path: "root", Mode: fs.ModeDir | 0o700},
		{Path: "run", Mode: fs.ModeDir | 0o755},
		{Path: "sbin", Mode: fs.ModeSymlink | 0o777, Link: "bin"},
		{Path: "sys", Mode: fs.ModeDir | 0o755},
		{Path: "tmp", Mode: shared},
		{Path: "usr/bin", Mode: fs.ModeSymlink | 0o777, Link: "../bin"},
		{Path: "usr/sbin", Mode: fs.ModeSymlink | 0o777, Link: "../bin"},
		{Path: "var/log", Mode: fs.ModeDir | 0o755},
		{Path: "var/tmp", Mode: shared},
	}
	applets := 0
	for applet := range strings.FieldsSeq(string(out)) {
		if applet == "busybox" || !fs.ValidPath(applet) || strings.Contains(applet, "/") {
			continue
		}
		tree = append(tree, File{Path: "bin/" + applet, Mode: 0o755, HardLink: "bin/busybox"})
		applets++
	}
	if applets == 0 {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%s lists no applets", binary))
	}
	return tree, nil
}
