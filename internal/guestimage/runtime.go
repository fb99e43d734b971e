package guestimage

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"path"
	"slices"
	"strings"
)

const (
	runtimePackage = "crun"
	runtimePath    = "usr/bin/crun"
)

// runtimeFiles are the OCI runtime and all that its loader will look for.
type runtimeFiles struct {
	binary []byte
	// loader is what the runtime names as its interpreter: path and content.
	loaderPath string
	loader     []byte
	// libraries by path in the initramfs.
	libraries map[string][]byte
	// stubs are the sonames of those libraries that are stand-ins.
	stubs []string
}

// collectRuntime fetches the runtime's package, and then packages that it depends on, level by level, until every
// shared library that the runtime and its libraries name is there. So only files that will be opened get in, whatever
// else the packages hold.
func collectRuntime(ctx context.Context, source packages) (runtimeFiles, []Package, error) {
	found := newTree()
	var fetched []Package
	seen := map[string]bool{}
	level := []string{runtimePackage}
	for {
		var next []string
		for _, name := range level {
			if seen[name] {
				continue
			}
			seen[name] = true
			pkg, err := unpack(ctx, source, name, found, inRuntime)
			if err != nil {
				return runtimeFiles{}, nil, err
			}
			fetched = append(fetched, pkg)
			depends, err := source.depends(ctx, name)
			if err != nil {
				return runtimeFiles{}, nil, err
			}
			next = append(next, depends...)
		}
		files, missing, err := link(found)
		if err != nil {
			return runtimeFiles{}, nil, err
		}
		if len(missing) == 0 {
			return files, fetched, nil
		}
		if !slices.ContainsFunc(next, func(name string) bool { return !seen[name] }) {
			return runtimeFiles{}, nil, fmt.Errorf("%s needs %s, which is in none of the packages it depends on", runtimePackage, strings.Join(missing, ", "))
		}
		level = next
	}
}

// inRuntime keeps programs and libraries and leaves out documentation.
func inRuntime(name string) bool {
	return name == runtimePath || strings.HasPrefix(strings.TrimPrefix(name, "usr/"), "lib")
}

// unpack fetches a package and adds the wanted files to a tree.
func unpack(ctx context.Context, source packages, name string, to *tree, keep func(string) bool) (Package, error) {
	pkg, err := source.fetch(ctx, name)
	if err != nil {
		return Package{}, err
	}
	stream, err := source.open(ctx, pkg)
	if err != nil {
		return Package{}, err
	}
	err = to.add(stream, keep)
	if closeErr := stream.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return Package{}, fmt.Errorf("unpack %s: %w", name, err)
	}
	return pkg, nil
}

// link finds what the loader would: the runtime's interpreter, and the closure of the libraries it needs. What the tree
// lacks is reported by name.
func link(t *tree) (files runtimeFiles, missing []string, err error) {
	files.libraries = make(map[string][]byte)
	if files.binary, err = t.read(runtimePath); err != nil {
		return files, nil, err
	}
	binary, err := readELF(runtimePath, files.binary)
	if err != nil {
		return files, nil, err
	}
	if binary.interpreter == "" {
		return files, nil, nil // a static build needs nothing
	}
	files.loaderPath = clean(binary.interpreter)
	if files.loader, err = t.read(files.loaderPath); err != nil {
		missing = append(missing, files.loaderPath)
	}
	queue, seen := binary.needed, map[string]bool{path.Base(files.loaderPath): true}
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		if name == stubbedLibrary {
			data, err := makeStub(files.binary, name)
			if err != nil {
				return files, nil, fmt.Errorf("make a stub of %s: %w", name, err)
			}
			if data != nil {
				files.libraries["lib/"+binary.triplet+"/"+name] = data
				files.stubs = append(files.stubs, name)
				continue
			}
		}
		target, data, ok := findLibrary(t, name, binary.triplet)
		if !ok {
			missing = append(missing, name)
			continue
		}
		library, err := readELF(target, data)
		if err != nil {
			return files, nil, err
		}
		files.libraries[target] = data
		queue = append(queue, library.needed...)
	}
	return files, missing, nil
}

// findLibrary looks where Debian's loader looks without a cache. In the initramfs all go where it looks first.
func findLibrary(t *tree, name, triplet string) (target string, data []byte, ok bool) {
	for _, dir := range []string{"lib/" + triplet, "usr/lib/" + triplet, "lib", "usr/lib"} {
		if data, err := t.read(dir + "/" + name); err == nil {
			return "lib/" + triplet + "/" + name, data, true
		}
	}
	return "", nil, false
}

// elfFile is what the loader reads of a program or library.
type elfFile struct {
	interpreter string
	needed      []string
	// triplet is Debian's name for the architecture.
	triplet string
	machine elf.Machine
}

func readELF(name string, data []byte) (elfFile, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return elfFile{}, fmt.Errorf("%s: read as an ELF file: %w", name, err)
	}
	result := elfFile{machine: f.Machine}
	switch f.Machine {
	case elf.EM_X86_64:
		result.triplet = "x86_64-linux-gnu"
	case elf.EM_AARCH64:
		result.triplet = "aarch64-linux-gnu"
	default:
		return elfFile{}, fmt.Errorf("%s is for the machine %v, and guests are x86-64 or arm64", name, f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		interpreter := make([]byte, min(p.Filesz, 4096))
		if _, err := p.ReadAt(interpreter, 0); err != nil {
			return elfFile{}, fmt.Errorf("%s: read the name of the interpreter: %w", name, err)
		}
		result.interpreter = string(bytes.TrimRight(interpreter, "\x00"))
	}
	if result.needed, err = f.ImportedLibraries(); err != nil {
		return elfFile{}, fmt.Errorf("%s: read the names of needed libraries: %w", name, err)
	}
	return result, nil
}
