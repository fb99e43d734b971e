package erofs

import (
	"errors"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// sparseFrom is the size from which it is worth the while to look for holes.
	sparseFrom = 1 << 20
	// maxChunks bounds a file's chunk map, which lies in the metadata: 4 bytes each.
	maxChunks = 1 << 15
)

// chunkBitsFor returns the smallest chunk size that describes a file of size with maxChunks.
func chunkBitsFor(size int64) uint8 {
	chunk := uint8(blockBits + 4)
	for size>>chunk >= maxChunks {
		chunk++
	}
	return chunk
}

// dataChunks returns a set of the file's chunks that hold data.
func dataChunks(f *os.File, size int64, chunkBits uint8) ([]uint64, error) {
	total := (size + 1<<chunkBits - 1) >> chunkBits
	set := make([]uint64, (total+63)/64)
	for pos := int64(0); pos < size; {
		data, err := unix.Seek(int(f.Fd()), pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return nil, &os.PathError{Op: "seek", Path: f.Name(), Err: err}
		}
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return nil, &os.PathError{Op: "seek", Path: f.Name(), Err: err}
		}
		hole = min(hole, size)
		for c := data >> chunkBits; c<<chunkBits < hole; c++ {
			set[c/64] |= 1 << (c % 64)
		}
		// The rest of the last chunk is copied with it.
		pos = max(hole, data+1)
		pos = (pos + 1<<chunkBits - 1) >> chunkBits << chunkBits
	}
	return set, nil
}

func countBits(set []uint64) int {
	n := 0
	for _, w := range set {
		n += bits.OnesCount64(w)
	}
	return n
}
