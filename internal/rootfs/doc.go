// Package rootfs turns the mounts that containerd hands over for a container's root into disks for a virtual machine.
//
// How things flow:
//
//	[]Mount ── parse ──► stack of layers, uppermost first, and the writable directory
//	  │
//	  ├─ directory layer ──► Cache: one EROFS image per layer and node, made once by package erofs ► *os.File
//	  ├─ EROFS image (containerd's erofs snapshotter) ───────────────────────────────────────────► *os.File
//	  └─ writable directory that is not empty ──► an image of its own, made anew, never cached ──► *os.File
//
//	[Cache.Prepare] ► [RootFS]: open, read-only images, held against garbage collection until [RootFS.Close]
//	[CreateScratch] ► the sparse ext4 disk that takes what the container writes
//	[Cache.Collect] ► removes the least recently used images that nothing holds
//
// The guest stacks the images with overlayfs, the scratch disk on top. Nothing is mounted on the host.
//
// Layers come from images that anybody may have made, so they are hostile input: a layer has to be a plain directory,
// and one that holds a block device is refused.
package rootfs
