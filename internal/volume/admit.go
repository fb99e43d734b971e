package volume

import (
	"encoding/binary"

	"bulkhead.dev/bulkhead/internal/volume/relay"
	"golang.org/x/sys/unix"
)

// A FUSE request begins with 40 bytes, in the byte order of the machine, which is little-endian on all that we run on:
//
//	length u32, operation u32, unique u64, node u64, uid u32, gid u32, pid u32, length of extensions u16 (in 8 bytes), 0 u16
//
// and a reply with 16: length u32, error i32 (negative), unique u64.
const (
	requestHeader = 40
	replyHeader   = 16
	// fixedReply is room for the largest reply without data.
	fixedReply = replyHeader + 256
)

// Operations that are answered (include/uapi/linux/fuse.h).
const (
	opLookup        = 1
	opForget        = 2
	opReadlink      = 5
	opRead          = 15
	opWrite         = 16
	opGetxattr      = 22
	opListxattr     = 23
	opInit          = 26
	opReaddir       = 28
	opInterrupt     = 36
	opBatchForget   = 42
	opReaddirplus   = 44
	opCopyFileRange = 47
)

// leastLength gives, for each operation that is answered, the least length of its request. The rest is answered with
// ENOSYS, which the kernel remembers. Locks are missing on purpose: the guest's kernel then keeps them itself.
var leastLength = map[uint32]uint32{
	opLookup:        41,
	opForget:        48,
	3:               56,  // getattr
	4:               128, // setattr
	opReadlink:      40,
	6:               42, // symlink
	8:               57, // mknod
	9:               49, // mkdir
	10:              41, // unlink
	11:              41, // rmdir
	12:              50, // rename
	13:              49, // link
	14:              48, // open
	opRead:          80,
	opWrite:         80,
	17:              40, // statfs
	18:              64, // release
	20:              56, // fsync
	21:              50, // setxattr
	opGetxattr:      49,
	opListxattr:     48,
	24:              41, // removexattr
	25:              64, // flush
	opInit:          56,
	27:              48, // opendir
	opReaddir:       80,
	29:              64, // releasedir
	30:              56, // fsyncdir
	35:              57, // create
	38:              40, // destroy
	opBatchForget:   48,
	43:              72, // fallocate
	opReaddirplus:   80,
	45:              58, // rename2
	46:              64, // lseek
	opCopyFileRange: 96,
}

// request is a message whose header is known to be sound.
type request struct {
	message   []byte
	operation uint32
	unique    uint64
	// room is the most that the reply takes.
	room int
}

// admit looks at a message before anything else does. An error of the errno kind is to be answered; ok is false when
// there is nothing to answer.
func admit(message []byte) (r request, errno unix.Errno, ok bool) {
	le := binary.LittleEndian
	r = request{message: message, operation: le.Uint32(message[4:]), unique: le.Uint64(message[8:]), room: fixedReply}
	least, known := leastLength[r.operation]
	silent := r.operation == opForget || r.operation == opBatchForget
	switch {
	case r.operation == opInterrupt:
		// A file server may ignore these. No request waits for anything but a disk.
		return r, 0, false
	case !known:
		return r, unix.ENOSYS, true
	case le.Uint32(message) != uint32(len(message)), uint32(len(message)) < least, le.Uint16(message[36:]) != 0:
		return r, unix.EINVAL, !silent
	}
	switch r.operation {
	case opRead, opReaddir, opReaddirplus:
		return r.withData(le.Uint32(message[56:]))
	case opGetxattr, opListxattr:
		return r.withData(le.Uint32(message[40:]))
	case opReadlink:
		return r.withData(unix.PathMax)
	case opWrite:
		if uint32(len(message))-80 != le.Uint32(message[56:]) {
			return r, unix.EINVAL, true
		}
	}
	return r, 0, true
}

func (r request) withData(size uint32) (request, unix.Errno, bool) {
	if size > relay.MaxData {
		return r, unix.EINVAL, true
	}
	r.room += int(size)
	return r, 0, true
}

// appendError appends the reply that says only an error.
func appendError(b []byte, unique uint64, errno unix.Errno) []byte {
	b = binary.LittleEndian.AppendUint32(b, replyHeader)
	b = binary.LittleEndian.AppendUint32(b, uint32(-int32(errno)))
	return binary.LittleEndian.AppendUint64(b, unique)
}
