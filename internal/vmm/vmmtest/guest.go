package vmmtest

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"bulkhead.dev/bulkhead/internal/vmm/vmmtest/testproto"
)

// kernelPackage depends on the kernel that the guests run, on Debian.
const kernelPackage = "linux-image-cloud-amd64"

// guestModules are the modules of that kernel which the suite's guest needs, dependencies first.
var guestModules = []string{
	"virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_console",
	"scsi_common", "scsi_mod", "virtio_scsi", "sd_mod", "failover", "net_failover", "virtio_net", "virtio_balloon",
}

// BuildGuest returns the paths of a kernel and of an initramfs with the suite's guest program. The kernel is taken from the
// distribution's package, which is fetched once into the user's cache directory and never installed. Where there is
// none, the test is skipped, and says why.
func BuildGuest(t testing.TB) (kernel, initramfs string) {
	t.Helper()
	root := fetchKernel(t)
	kernels, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		t.Fatalf("kernels in %s: %v, %v", root, kernels, err)
	}
	files := []cpioFile{
		{Name: "dev", Dir: true},
		{Name: "init", Data: buildInit(t)},
		{Name: "modules", Dir: true},
	}
	for i, name := range guestModules {
		data, err := os.ReadFile(findModule(t, root, name))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, cpioFile{Name: fmt.Sprintf("modules/%02d-%s", i, name), Data: data})
	}
	initramfs = filepath.Join(t.TempDir(), "initramfs")
	f, err := os.Create(initramfs)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(writeCPIO(f, files), f.Close()); err != nil {
		t.Fatal(err)
	}
	return kernels[0], initramfs
}

// buildInit compiles the guest program for a machine without libraries.
func buildInit(t testing.TB) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "bulkhead.dev/bulkhead/internal/vmm/vmmtest/testguest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the guest program: %v\n%s", err, text)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// fetchKernel returns the directory with the unpacked kernel package. One that has been unpacked before is used again, so
// that only the first run needs a package mirror.
func fetchKernel(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatalf("no cache directory for the kernel package: %v", err)
	}
	cache = filepath.Join(cache, "bulkhead-test")
	if known, _ := filepath.Glob(filepath.Join(cache, "linux-image-*", "boot", "vmlinuz-*")); len(known) > 0 {
		slices.Sort(known)
		return filepath.Dir(filepath.Dir(known[len(known)-1]))
	}
	text, err := exec.Command("apt-cache", "depends", kernelPackage).Output()
	if err != nil {
		t.Fatalf("no guest kernel: apt-cache depends %s: %v", kernelPackage, err)
	}
	name := regexp.MustCompile(`linux-image-[0-9][a-z0-9.+-]*`).FindString(string(text))
	if name == "" {
		t.Fatalf("no guest kernel: %s depends on no linux-image package:\n%s", kernelPackage, text)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	work, err := os.MkdirTemp(cache, "tmp-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(work)
	download := exec.Command("apt-get", "download", name)
	download.Dir = work
	if text, err := download.CombinedOutput(); err != nil {
		t.Skipf("no guest kernel: apt-get download %s: %v\n%s", name, err, text)
	}
	debs, _ := filepath.Glob(filepath.Join(work, "*.deb"))
	if len(debs) != 1 {
		t.Fatalf("packages downloaded: %v", debs)
	}
	unpacked := filepath.Join(work, "unpacked")
	if text, err := exec.Command("dpkg-deb", "-x", debs[0], unpacked).CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v\n%s", debs[0], err, text)
	}
	root := filepath.Join(cache, name)
	if err := os.Rename(unpacked, root); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	return root
}

func findModule(t testing.TB, root, name string) string {
	t.Helper()
	var found string
	err := filepath.WalkDir(filepath.Join(root, "lib/modules"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.ReplaceAll(d.Name(), "-", "_") == name+".ko" {
			found = path
			return fs.SkipAll
		}
		return err
	})
	if err != nil || found == "" {
		t.Fatalf("module %s in %s: %q, %v", name, root, found, err)
	}
	return found
}

// ServeGuest plays the suite's guest program for a [Fake]: NewFakeGuest(ServeGuest) passes the suite.
func ServeGuest(conn net.Conn, guest *FakeGuest) {
	defer conn.Close()
	_ = testproto.Serve(conn, fakeMachine{guest}) // it ends when the VM does
}

type fakeMachine struct{ guest *FakeGuest }

func (m fakeMachine) Info() (testproto.Info, error) {
	spec := m.guest.vm.spec
	info := testproto.Info{
		CPUs:        spec.VCPUs,
		MemoryBytes: spec.MemoryBytes * 9 / 10,
		CommandLine: strings.Join(spec.KernelArgs, " "),
	}
	for _, nic := range spec.NICs {
		info.NICs = append(info.NICs, testproto.NIC{MAC: nic.MAC.String(), MTU: nic.MTU})
	}
	return info, nil
}

func (m fakeMachine) Disks() ([]testproto.Disk, error) {
	var disks []testproto.Disk
	for at, disk := range m.guest.Disks() {
		info, err := disk.File.Stat()
		if err != nil {
			return nil, err
		}
		lun, err := parseAddress(at)
		if err != nil {
			return nil, err
		}
		disks = append(disks, testproto.Disk{LUN: lun, Bytes: info.Size(), ReadOnly: disk.ReadOnly})
	}
	slices.SortFunc(disks, func(a, b testproto.Disk) int { return a.LUN - b.LUN })
	return disks, nil
}

func (m fakeMachine) disk(lun int) (FakeDisk, error) {
	disk, ok := m.guest.Disks()[address(lun)]
	if !ok {
		return FakeDisk{}, fmt.Errorf("disk %d is not there", lun)
	}
	return disk, nil
}

func (m fakeMachine) Read(lun int, offset int64, length int) ([]byte, error) {
	disk, err := m.disk(lun)
	if err != nil {
		return nil, err
	}
	data := make([]byte, length)
	n, err := disk.File.ReadAt(data, offset)
	return data[:n], err
}

func (m fakeMachine) Write(lun int, offset int64, data []byte) error {
	disk, err := m.disk(lun)
	if err != nil {
		return err
	}
	if disk.ReadOnly {
		return fmt.Errorf("disk %d is read-only", lun)
	}
	_, err = disk.File.WriteAt(data, offset)
	return err
}

func (m fakeMachine) Print(data []byte) error {
	m.guest.Print(string(data))
	return nil
}

func (m fakeMachine) Fill(int) error { return nil }

func (m fakeMachine) Panic() { m.guest.Panic() }
