// Package erofs writes EROFS images of directories.
//
// How things flow:
//
//	directory ── scan ──► tree of entries (names, attributes, extended attributes, what is sparse)
//	                        │
//	                      layout ──► every inode's place, every file's blocks
//	                        │
//	                      write ──► superblock │ inodes, small files and directories │ large directories and files
//
// The images are uncompressed and as plain as the format allows, so that a kernel from 5.15 on mounts them. What
// mattered here, and made mkfs.erofs unfit (docs/adr/0004-rootfs-erofs.md):
//
//   - holes of sparse files are neither read nor stored;
//   - the overlay attributes of a layer that was unpacked without privileges (user.overlay.*) become those that a
//     mount with privileges understands (trusted.overlay.*), and those that point into the host's file systems go;
//   - the tree may come from anybody: it is read beneath one directory without following links or crossing mounts,
//     file contents are copied by the kernel, and numbers are bounded;
//   - the same tree gives the same bytes.
//
// # Format
//
// Blocks are 4096 bytes, all numbers little-endian. An inode's number (nid) is its byte offset divided by 32.
//
//	0        1024         4096                                  metaEnd                      end
//	│ unused │ superblock │ inode, xattrs, inline data │ inode … │ directory and file blocks │
//
//	inode (64 bytes, "extended")            layout, in format's bits 1 – 3
//	  0 format u16   2 xattr count u16        0 plain:  u = first block
//	  4 mode u16     6 –                      2 inline: the data follows the xattrs, in the same block
//	  8 size u64    16 u u32                  4 chunks: u = log2 of blocks in a chunk; a u32 for each chunk follows
//	 20 ino u32     24 uid u32                          the xattrs: its first block, or all ones for a hole
//	 28 gid u32     32 mtime u64            device nodes: u = device number
//	 40 nsec u32    44 nlink u32
//
//	xattrs: 12 bytes of which the 5th is 0 (no shared ones), then for each, padded to 4:
//	  name length u8, prefix u8, value length u16, name, value
//
//	directory block: for each entry nid u64, name offset u16, type u8, 0 u8; then the names; sorted over all blocks
package erofs
