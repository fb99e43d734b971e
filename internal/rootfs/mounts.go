package rootfs

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	// maxLayers bounds a stack: overlayfs takes no more than 500 layers.
	maxLayers = 500
	// maxOptions bounds what is parsed.
	maxOptions = 4096
)

// source is where one layer comes from: a directory or an image file.
type source struct {
	path  string
	image bool
}

// stack is what a list of mounts describes.
type stack struct {
	lower     []source // uppermost first
	upper     string
	userXattr bool
}

// parse reads containerd's mounts. There are three shapes:
//
//	overlay                              directories; what snapshotters give by default
//	bind                                 one directory: a single layer, or a writable one without any below
//	[mkfs/ext4] erofs… format/…/overlay  images, and a template that names them by number; what the erofs snapshotter
//	                                     gives to a runtime that takes such mounts itself. Its writable ext4 image
//	                                     is left alone: the scratch disk takes its place.
func parse(mounts []Mount) (stack, error) {
	if len(mounts) == 0 {
		return stack{}, fmt.Errorf("no mounts for the root: %w", errdefs.ErrInvalidArgument)
	}
	if len(mounts) > maxLayers+2 {
		return stack{}, fmt.Errorf("%d mounts for the root: %w", len(mounts), errdefs.ErrInvalidArgument)
	}
	p := parser{mounts: mounts}
	last := len(mounts) - 1
	for i, m := range mounts {
		if err := p.mount(i, m, i == last); err != nil {
			return stack{}, fmt.Errorf("mount %d of the root (%s): %w", i, m.Type, err)
		}
	}
	if len(p.stack.lower) > maxLayers {
		return stack{}, fmt.Errorf("%d layers, %d are possible: %w", len(p.stack.lower), maxLayers, errdefs.ErrInvalidArgument)
	}
	if len(p.stack.lower) == 0 && p.stack.upper == "" {
		return stack{}, fmt.Errorf("mounts for the root name no directory: %w", errdefs.ErrInvalidArgument)
	}
	return p.stack, nil
}

type parser struct {
	mounts []Mount
	stack  stack
}

func (p *parser) mount(i int, m Mount, last bool) error {
	if len(m.Options) > maxOptions {
		return fmt.Errorf("%d options: %w", len(m.Options), errdefs.ErrInvalidArgument)
	}
	// "format/" and "mkdir/" ask for templates and directories to be made; what they are for is the last part.
	kind := m.Type[strings.LastIndexByte(m.Type, '/')+1:]
	switch {
	case kind == "overlay" && last:
		return p.overlay(m.Options)
	case kind == "bind" && last:
		return p.bind(m)
	case kind == "erofs" && last:
		images, err := p.images(i, i)
		p.stack.lower = images
		return err
	case kind == "erofs":
		return nil // named by the last mount
	case m.Type == "mkfs/ext4" && i == 0 && !last:
		return nil
	}
	return fmt.Errorf("can't be used: %w", errdefs.ErrInvalidArgument)
}

func (p *parser) bind(m Mount) error {
	readonly := false
	for _, option := range m.Options {
		key, _, _ := strings.Cut(option, "=")
		switch key {
		case "ro":
			readonly = true
		case "rw", "bind", "rbind", "X-containerd.mkdir.path":
		default:
			return unsupported(option)
		}
	}
	if strings.Contains(m.Source, "{{") {
		if p.ext4(m.Source) {
			return nil // a new writable directory without layers
		}
		lower, err := p.template(m.Source)
		p.stack.lower = lower
		return err
	}
	path, err := absolute(m.Source)
	if err != nil {
		return err
	}
	if readonly {
		p.stack.lower = []source{{path: path}}
	} else {
		p.stack.upper = path
	}
	return nil
}

func (p *parser) overlay(options []string) error {
	var lower string
	for _, option := range options {
		key, value, _ := strings.Cut(option, "=")
		var err error
		switch key {
		case "lowerdir":
			lower = value
		case "upperdir":
			if !p.ext4(value) {
				p.stack.upper, err = absolute(value)
			}
		case "userxattr":
			p.stack.userXattr = true
		case "workdir", "ro", "rw", "index", "xino", "volatile", "fsync", "X-containerd.mkdir.path":
			// They say how the host would have mounted it.
		case "metacopy", "redirect_dir":
			if value == "on" {
				err = unsupported(option)
			}
		default:
			err = unsupported(option)
		}
		if err != nil {
			return err
		}
	}
	if lower == "" {
		return fmt.Errorf("overlay without lowerdir: %w", errdefs.ErrInvalidArgument)
	}
	var err error
	p.stack.lower, err = p.lowerdirs(lower)
	return err
}

// unsupported refuses an option rather than to ignore it: it may change what the container sees.
func unsupported(option string) error {
	return fmt.Errorf("option %q is not supported: %w", option, errdefs.ErrInvalidArgument)
}

// lowerdirs splits a lowerdir option. A colon and a backslash in a path are escaped with a backslash.
func (p *parser) lowerdirs(value string) ([]source, error) {
	if strings.Contains(value, "{{") {
		return p.template(value)
	}
	var lower []source
	var path strings.Builder
	end := func() error {
		abs, err := absolute(path.String())
		lower = append(lower, source{path: abs})
		path.Reset()
		return err
	}
	for i := 0; i < len(value); i++ {
		switch c := value[i]; {
		case c == '\\' && i+1 < len(value):
			i++
			path.WriteByte(value[i])
		case c == ':':
			if err := end(); err != nil {
				return nil, err
			}
		default:
			path.WriteByte(c)
		}
	}
	return lower, end()
}

// References to other mounts in templates, which containerd's mount manager understands.
var (
	oneMount   = regexp.MustCompile(`^\{\{ ?mount ([0-9]{1,4}) ?\}\}$`)
	mountRange = regexp.MustCompile(`^\{\{ ?overlay ([0-9]{1,4}) ([0-9]{1,4}) ?\}\}$`)
	mountBelow = regexp.MustCompile(`^\{\{ ?mount ([0-9]{1,4}) ?\}\}/[a-z]+$`)
)

// template resolves a reference to one or several image mounts.
func (p *parser) template(value string) ([]source, error) {
	if m := oneMount.FindStringSubmatch(value); m != nil {
		i, _ := strconv.Atoi(m[1])
		return p.images(i, i)
	}
	if m := mountRange.FindStringSubmatch(value); m != nil {
		from, _ := strconv.Atoi(m[1])
		to, _ := strconv.Atoi(m[2])
		return p.images(from, to)
	}
	return nil, fmt.Errorf("template %q is not supported: %w", value, errdefs.ErrInvalidArgument)
}

// ext4 says whether value is a directory within the writable image that a list of mounts may begin with.
func (p *parser) ext4(value string) bool {
	m := mountBelow.FindStringSubmatch(value)
	return m != nil && m[1] == "0" && p.mounts[0].Type == "mkfs/ext4"
}

// images returns the images of mounts from – to, which may count down.
func (p *parser) images(from, to int) ([]source, error) {
	if from >= len(p.mounts) || to >= len(p.mounts) {
		return nil, fmt.Errorf("template names mount %d of %d: %w", max(from, to), len(p.mounts), errdefs.ErrInvalidArgument)
	}
	step := 1
	if from > to {
		step = -1
	}
	var lower []source
	for i := from; ; i += step {
		images, err := imageSources(p.mounts[i])
		if err != nil {
			return nil, err
		}
		lower = append(lower, images...)
		if i == to {
			return lower, nil
		}
	}
}

// imageSources returns the images of one erofs mount. An image with further devices is a merged index of theirs, each
// of which is the complete image of one layer, listed from the lowest up; they take the place of the index.
func imageSources(m Mount) ([]source, error) {
	if m.Type != "erofs" {
		return nil, fmt.Errorf("template names a mount of type %q: %w", m.Type, errdefs.ErrInvalidArgument)
	}
	var devices []source
	for _, option := range m.Options {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "ro", "loop":
		case "device":
			path, err := absolute(value)
			if err != nil {
				return nil, err
			}
			devices = append([]source{{path: path, image: true}}, devices...)
		default:
			// X-containerd.dmverity among them: what the host was asked to verify isn't used unverified.
			return nil, unsupported(option)
		}
	}
	if devices != nil {
		return devices, nil
	}
	path, err := absolute(m.Source)
	return []source{{path: path, image: true}}, err
}

func absolute(path string) (string, error) {
	if !filepath.IsAbs(path) || strings.IndexByte(path, 0) >= 0 {
		return "", fmt.Errorf("path %q is not absolute: %w", path, errdefs.ErrInvalidArgument)
	}
	return filepath.Clean(path), nil
}
