package doctor

// qemuArch is this architecture in the names of QEMU's programs.
const qemuArch = "x86_64"
