package erofs

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// ErrBlockDevice says that a tree holds a block device.
var ErrBlockDevice = errors.New("block devices are refused")

// ErrChanged says that a file changed while it was read.
var ErrChanged = errors.New("changed while it was converted")

// maxInline is the size up to which data is stored beside its inode.
const maxInline = 2048

// Options change what is written.
type Options struct {
	// UserXattr says that the tree is a layer of an overlay mounted with userxattr: its user.overlay.* attributes are
	// stored as trusted.overlay.*, its own trusted.overlay.* are dropped.
	UserXattr bool

	memory int64 // for tests: in place of maxMemory
}

// Info describes a written image.
type Info struct {
	Inodes int
	Size   int64 // of the image file
}

// Write writes an image of the tree beneath dir, an open directory, into out, an empty file. It can be cancelled. What
// is in out after an error is of no use. Write does not sync.
func Write(ctx context.Context, out, dir *os.File, options Options) (Info, error) {
	defer runtime.KeepAlive(dir) // only its number is used below
	s, err := scan(ctx, dir, options)
	if err != nil {
		return Info{}, err
	}
	w := &writer{out: out, root: int(dir.Fd()), inodes: s.inodes}
	if err := w.layout(); err != nil {
		return Info{}, err
	}
	if err := w.metadata(ctx); err != nil {
		return Info{}, err
	}
	if err := w.data(ctx); err != nil {
		return Info{}, err
	}
	size := int64(w.blocks) << blockBits
	if err := out.Truncate(size); err != nil {
		return Info{}, err
	}
	sb := superblock(uint64(len(w.inodes)), w.blocks, uint16(w.inodes[0].nid()), w.chunked)
	if _, err := out.WriteAt(sb, 0); err != nil {
		return Info{}, err
	}
	return Info{Inodes: len(w.inodes), Size: size}, nil
}

type writer struct {
	out     *os.File
	root    int
	inodes  []*inode
	metaEnd int64
	blocks  uint64
	chunked bool
}

// layout gives every inode its place in the metadata, then blocks to what doesn't fit beside its inode.
func (w *writer) layout() error {
	pos := int64(blockSize)
	for _, e := range w.inodes {
		head := int64(inodeSize + len(e.xattrs))
		tail := int64(0)
		switch {
		case e.isDevice():
			e.layout = layoutPlain
		case e.chunkBits != 0:
			e.layout, w.chunked = layoutChunks, true
			tail = 4 * ((e.size + 1<<e.chunkBits - 1) >> e.chunkBits)
		case e.size > 0 && e.size <= maxInline && head+e.size <= blockSize,
			e.format() == unix.S_IFLNK && head+e.size <= blockSize:
			e.layout, tail = layoutInline, e.size
		default:
			e.layout = layoutPlain
			e.blocks = uint64(e.size+blockSize-1) >> blockBits
		}
		// The kernel wants inline data in its inode's block, and reads the fixed part at once.
		room := blockSize - pos%blockSize
		if e.layout == layoutInline && head+tail > room || inodeSize > room {
			pos += room
		}
		e.offset = pos
		pos = (pos + head + tail + nidSize - 1) / nidSize * nidSize
	}
	w.metaEnd = (pos + blockSize - 1) / blockSize * blockSize
	w.blocks = uint64(w.metaEnd) >> blockBits
	for _, e := range w.inodes {
		if e.blocks == 0 {
			continue
		}
		e.block = uint32(w.blocks)
		if w.blocks += e.blocks; w.blocks > maxBlocks {
			return fmt.Errorf("%q: image larger than 16 TiB: %w", e.path(), unix.EFBIG)
		}
	}
	return nil
}

// metadata writes the inodes with what lies beside them.
func (w *writer) metadata(ctx context.Context) error {
	out := bufio.NewWriterSize(io.NewOffsetWriter(w.out, blockSize), 1<<18)
	pos := int64(blockSize)
	var buf []byte
	for i, e := range w.inodes {
		if i%256 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		buf = append(buf[:0], make([]byte, e.offset-pos+inodeSize)...)
		putInode(buf[e.offset-pos:], e, uint32(i+1))
		buf = append(buf, e.xattrs...)
		var err error
		if buf, err = w.appendTail(buf, e); err != nil {
			return fmt.Errorf("%q: %w", e.path(), err)
		}
		if _, err := out.Write(buf); err != nil {
			return err
		}
		pos += int64(len(buf))
	}
	return out.Flush()
}

// appendTail appends what follows an inode's attributes.
func (w *writer) appendTail(buf []byte, e *inode) ([]byte, error) {
	switch {
	case e.layout == layoutChunks:
		return w.appendChunkMap(buf, e)
	case e.layout != layoutInline:
		return buf, nil
	case e.format() == unix.S_IFDIR:
		return appendDir(buf, e.entries), nil
	case e.format() == unix.S_IFLNK:
		return append(buf, e.link...), nil
	}
	f, err := w.open(e)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	start := len(buf)
	buf = append(buf, make([]byte, e.size)...)
	if _, err := io.ReadFull(f, buf[start:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = ErrChanged
		}
		return nil, err
	}
	return buf, nil
}

func (w *writer) appendChunkMap(buf []byte, e *inode) ([]byte, error) {
	block := e.block
	err := w.chunks(e, func(_ int64, data bool) error {
		if !data {
			buf = binary.LittleEndian.AppendUint32(buf, holeBlock)
			return nil
		}
		buf = binary.LittleEndian.AppendUint32(buf, block)
		block += 1 << (e.chunkBits - blockBits)
		return nil
	})
	return buf, err
}

// chunks calls do for every chunk of a sparse file. The map is read again each time rather than kept, since a tree may
// hold very many such files.
func (w *writer) chunks(e *inode, do func(offset int64, data bool) error) error {
	f, err := w.open(e)
	if err != nil {
		return err
	}
	defer f.Close()
	set, err := dataChunks(f, e.size, e.chunkBits)
	if err != nil {
		return err
	}
	if uint64(countBits(set))<<(e.chunkBits-blockBits) != e.blocks {
		return ErrChanged
	}
	for c := int64(0); c<<e.chunkBits < e.size; c++ {
		if err := do(c<<e.chunkBits, set[c/64]&(1<<(c%64)) != 0); err != nil {
			return err
		}
	}
	return nil
}

// data writes the blocks of directories, links and files.
func (w *writer) data(ctx context.Context) error {
	for _, e := range w.inodes {
		if e.blocks == 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.fileData(ctx, e); err != nil {
			return fmt.Errorf("%q: %w", e.path(), err)
		}
	}
	return nil
}

func (w *writer) fileData(ctx context.Context, e *inode) error {
	at := int64(e.block) << blockBits
	switch e.format() {
	case unix.S_IFDIR:
		_, err := w.out.WriteAt(appendDir(nil, e.entries), at)
		return err
	case unix.S_IFLNK:
		_, err := w.out.WriteAt([]byte(e.link), at)
		return err
	}
	f, err := w.open(e)
	if err != nil {
		return err
	}
	defer f.Close()
	if e.layout != layoutChunks {
		return w.copy(ctx, f, 0, at, e.size)
	}
	return w.chunks(e, func(offset int64, data bool) error {
		if !data {
			return nil
		}
		err := w.copy(ctx, f, offset, at, min(1<<e.chunkBits, e.size-offset))
		at += 1 << e.chunkBits
		return err
	})
}

// copyStep is how much is copied between two looks at whether to go on.
const copyStep = 16 << 20

// copy copies n bytes of f at from to the image at to, in the kernel where the file systems allow it.
func (w *writer) copy(ctx context.Context, f *os.File, from, to, n int64) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		src, dst := from, to
		done, err := unix.CopyFileRange(int(f.Fd()), &src, int(w.out.Fd()), &dst, int(min(n, copyStep)), 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return w.copyThrough(ctx, f, from, to, n)
		case err != nil:
			return fmt.Errorf("copy: %w", err)
		case done == 0:
			return ErrChanged
		}
		from, to, n = from+int64(done), to+int64(done), n-int64(done)
	}
	return nil
}

// copyThrough copies through memory.
func (w *writer) copyThrough(ctx context.Context, f *os.File, from, to, n int64) error {
	buf := make([]byte, min(n, 1<<20))
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := buf[:min(n, int64(len(buf)))]
		if _, err := f.ReadAt(part, from); errors.Is(err, io.EOF) {
			return ErrChanged
		} else if err != nil {
			return err
		}
		if _, err := w.out.WriteAt(part, to); err != nil {
			return err
		}
		from, to, n = from+int64(len(part)), to+int64(len(part)), n-int64(len(part))
	}
	return nil
}

// open opens a regular file of the tree and checks that it is what was scanned.
func (w *writer) open(e *inode) (*os.File, error) {
	f, err := openBeneath(w.root, e.path(), unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, err
	}
	if st.Mode != e.mode || st.Size != e.size {
		f.Close()
		return nil, ErrChanged
	}
	return f, nil
}
