package erofs

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"

	"golang.org/x/sys/unix"
)

const (
	blockBits = 12
	blockSize = 1 << blockBits

	superOffset = 1024
	superSize   = 128
	superMagic  = 0xE0F5E1E2

	compatChecksum      = 0x1
	compatMtime         = 0x2
	incompatChunkedFile = 0x4

	inodeSize = 64
	nidSize   = 32

	layoutPlain  = 0
	layoutInline = 2
	layoutChunks = 4

	xattrHeaderSize = 12
	direntSize      = 12
	holeBlock       = ^uint32(0)

	// maxBlocks is what 32-bit block numbers can name, less the mark for holes.
	maxBlocks = 1<<32 - 2
)

// Prefixes of extended attribute names, which are stored as numbers.
const (
	xattrUser         = 1
	xattrACLAccess    = 2
	xattrACLDefault   = 3
	xattrTrusted      = 4
	xattrSecurity     = 6
	aclAccess         = "system.posix_acl_access"
	aclDefault        = "system.posix_acl_default"
	maxXattrsOfInode  = 1 << 18 // the count field's reach
	maxXattrValueSize = 1<<16 - 1
)

// superblock returns block 0.
func superblock(inodes, blocks uint64, rootNID uint16, chunked bool) []byte {
	block := make([]byte, blockSize)
	sb := block[superOffset:]
	le := binary.LittleEndian
	le.PutUint32(sb[0:], superMagic)
	le.PutUint32(sb[8:], compatChecksum|compatMtime)
	sb[12] = blockBits
	le.PutUint16(sb[14:], rootNID)
	le.PutUint64(sb[16:], inodes)
	le.PutUint32(sb[36:], uint32(blocks))
	if chunked {
		le.PutUint32(sb[80:], incompatChunkedFile)
	}
	// The kernel's crc32c starts with all ones, as ours does, but does not invert the result.
	le.PutUint32(sb[4:], ^crc32.Checksum(sb, crc32.MakeTable(crc32.Castagnoli)))
	return block
}

// putInode writes the 64 bytes of an inode.
func putInode(b []byte, e *inode, ino uint32) {
	le := binary.LittleEndian
	le.PutUint16(b[0:], 1|uint16(e.layout)<<1)
	if n := len(e.xattrs); n > 0 {
		le.PutUint16(b[2:], uint16((n-xattrHeaderSize)/4+1))
	}
	le.PutUint16(b[4:], uint16(e.mode))
	le.PutUint64(b[8:], uint64(e.size))
	switch {
	case e.isDevice():
		le.PutUint32(b[16:], deviceNumber(e.rdev))
	case e.layout == layoutChunks:
		le.PutUint32(b[16:], uint32(e.chunkBits-blockBits))
	case e.layout == layoutPlain:
		le.PutUint32(b[16:], e.block)
	}
	le.PutUint32(b[20:], ino)
	le.PutUint32(b[24:], e.uid)
	le.PutUint32(b[28:], e.gid)
	le.PutUint64(b[32:], uint64(e.mtime))
	le.PutUint32(b[40:], e.mtimeNsec)
	le.PutUint32(b[44:], e.nlink)
}

// deviceNumber encodes a device number as the kernel's new_encode_dev does.
func deviceNumber(rdev uint64) uint32 {
	major, minor := unix.Major(rdev), unix.Minor(rdev)
	return minor&0xff | major<<8 | minor&^0xff<<12
}

// fileType is a directory entry's type.
func fileType(mode uint32) byte {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 1
	case unix.S_IFDIR:
		return 2
	case unix.S_IFCHR:
		return 3
	case unix.S_IFBLK:
		return 4
	case unix.S_IFIFO:
		return 5
	case unix.S_IFSOCK:
		return 6
	case unix.S_IFLNK:
		return 7
	}
	return 0
}

// dirSize returns the size of a directory with these sorted entries, as stored.
func dirSize(entries []dirent) int64 {
	size, used := int64(0), 0
	for _, e := range entries {
		need := direntSize + len(e.name)
		if used+need > blockSize {
			size, used = size+blockSize, 0
		}
		used += need
	}
	return size + int64(used)
}

// appendDir appends the stored form of a directory: blocks, of which the last ends with its last name.
func appendDir(b []byte, entries []dirent) []byte {
	for len(entries) > 0 {
		n, used := 0, 0
		for n < len(entries) && used+direntSize+len(entries[n].name) <= blockSize {
			used += direntSize + len(entries[n].name)
			n++
		}
		start, nameOffset := len(b), n*direntSize
		for _, e := range entries[:n] {
			b = binary.LittleEndian.AppendUint64(b, e.inode.nid())
			b = binary.LittleEndian.AppendUint16(b, uint16(nameOffset))
			b = append(b, fileType(e.inode.mode), 0)
			nameOffset += len(e.name)
		}
		for _, e := range entries[:n] {
			b = append(b, e.name...)
		}
		if entries = entries[n:]; len(entries) > 0 {
			b = append(b, make([]byte, start+blockSize-len(b))...)
		}
	}
	return b
}

// ErrNotEROFS says that a file does not begin as an image does.
var ErrNotEROFS = errors.New("not an EROFS image")

// Check looks whether a file begins as an image does. It is a guard against mistakes: whoever mounts an image has to be
// safe against all of its contents.
func Check(r io.ReaderAt) error {
	var magic [4]byte
	if _, err := r.ReadAt(magic[:], superOffset); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if binary.LittleEndian.Uint32(magic[:]) != superMagic {
		return ErrNotEROFS
	}
	return nil
}
