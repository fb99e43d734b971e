package spec

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"go.yaml.in/yaml/v3"
)

// document is the whole of a cluster config file.
type document struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Config
}

// Load reads a cluster config file: one YAML document of at most 1 MiB. It is read strictly: an unknown key, a key that is there
// twice, a value of the wrong type or one that isn't allowed is an error of the class ErrInvalidArgument which begins with the
// line, where it is known, and the path of the key. What the file leaves out has its default.
func Load(r io.Reader) (Config, error) {
	c, err := load(r)
	if err != nil {
		return Config{}, fmt.Errorf("read cluster config: %w", err)
	}
	return c, nil
}

func load(r io.Reader) (Config, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return Config{}, err
	}
	if len(data) > maxFile {
		return Config{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("it has more than %d bytes", maxFile))
	}
	root, err := parseYAML(string(data))
	if err != nil {
		return Config{}, errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	// Which format it is comes first: the keys of another one would be reported as unknown.
	for _, head := range []struct{ key, want string }{{"apiVersion", APIVersion}, {"kind", Kind}} {
		if err := checkHead(root, head.key, head.want); err != nil {
			return Config{}, err
		}
	}
	doc := document{Config: Default()}
	if err := decode(root, reflect.ValueOf(&doc).Elem(), ""); err != nil {
		return Config{}, err
	}
	c := doc.Config
	if err := c.Validate(); err != nil {
		return Config{}, err
	}
	if exempt := c.PodSecurity.ExemptNamespaces; !slices.Contains(exempt, systemNamespace) {
		c.PodSecurity.ExemptNamespaces = append([]string{systemNamespace}, exempt...)
	}
	return c, nil
}

// parseYAML returns the mapping that is the only document.
func parseYAML(text string) (*yaml.Node, error) {
	decoder := yaml.NewDecoder(strings.NewReader(text))
	var doc, second yaml.Node
	if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("it is empty: it must begin with apiVersion: %s and kind: %s", APIVersion, Kind)
	} else if err != nil {
		return nil, err
	}
	if err := decoder.Decode(&second); err == nil {
		return nil, fmt.Errorf("line %d: a second document begins: there may be only one", second.Line)
	} else if !errors.Is(err, io.EOF) {
		return nil, err
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: it is %s: it must be a mapping that begins with apiVersion: %s and kind: %s", root.Line, describe(root), APIVersion, Kind)
	}
	return root, nil
}

func checkHead(root *yaml.Node, key, want string) error {
	for i := 0; i+1 < len(root.Content); i += 2 {
		if root.Content[i].Value != key {
			continue
		}
		if value := root.Content[i+1]; value.Kind != yaml.ScalarNode || value.Value != want {
			return at(value, key, fmt.Sprintf("%s is not known: this program reads %s", describe(value), want))
		}
		return nil
	}
	return &keyError{key, fmt.Sprintf("is missing: write %s: %s", key, want)}
}

// decode fills v, whose kinds are those of document, from a node. path is the key's, "" at the root.
func decode(n *yaml.Node, v reflect.Value, path string) error {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return at(n, path, "anchors and aliases are not allowed: write the value out")
	}
	switch v.Kind() {
	case reflect.Struct:
		return decodeMapping(n, path, func(key *yaml.Node, at string) (reflect.Value, error) { return fieldOf(v, key, path, at) }, nil)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		element := reflect.Value{}
		return decodeMapping(n, path,
			func(*yaml.Node, string) (reflect.Value, error) {
				element = reflect.New(v.Type().Elem()).Elem()
				return element, nil
			},
			func(key string) { v.SetMapIndex(reflect.ValueOf(key), element) })
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			return at(n, path, describe(n)+" is no list")
		}
		list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, item := range n.Content {
			if err := decode(item, list.Index(i), fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
		v.Set(list)
	case reflect.String:
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
			return at(n, path, describe(n)+" is no string: put it in quotes if it is meant as one")
		}
		v.SetString(n.Value)
	case reflect.Int:
		i, err := strconv.Atoi(n.Value)
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" || err != nil {
			return at(n, path, describe(n)+" is no whole number")
		}
		v.SetInt(int64(i))
	default:
		return at(n, path, "the program can't read a "+v.Kind().String()) // a test reads every key
	}
	return nil
}

// decodeMapping decodes each value into what target returns for its key, and then calls done, which may be nil.
func decodeMapping(n *yaml.Node, path string, target func(key *yaml.Node, at string) (reflect.Value, error), done func(key string)) error {
	if n.Kind != yaml.MappingNode {
		return at(n, path, describe(n)+" is no mapping")
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" {
			return at(key, path, describe(key)+" is no key: keys are strings")
		}
		full := join(path, key.Value)
		if seen[key.Value] {
			return at(key, full, "is there twice")
		}
		seen[key.Value] = true
		v, err := target(key, full)
		if err != nil {
			return err
		}
		if err := decode(n.Content[i+1], v, full); err != nil {
			return err
		}
		if done != nil {
			done(key.Value)
		}
	}
	return nil
}

// fieldOf finds a struct's field by its name in the file.
func fieldOf(v reflect.Value, key *yaml.Node, parent, full string) (reflect.Value, error) {
	var known []string
	for _, f := range reflect.VisibleFields(v.Type()) {
		name := f.Tag.Get("json")
		name, _, _ = strings.Cut(name, ",")
		if name == "" {
			continue
		}
		if name == key.Value {
			return v.FieldByIndex(f.Index), nil
		}
		known = append(known, name)
	}
	where := "at the top there are "
	if parent != "" {
		where = parent + " has "
	}
	return reflect.Value{}, at(key, full, "unknown key; "+where+strings.Join(known, ", "))
}

// join makes the path of a key; one that isn't a plain word, such as a host's name, is quoted.
func join(parent, key string) string {
	plain := key != "" && !strings.ContainsFunc(key, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9')
	})
	switch {
	case !plain:
		return fmt.Sprintf("%s[%q]", parent, key)
	case parent == "":
		return key
	}
	return parent + "." + key
}

func at(n *yaml.Node, path, message string) error {
	if path == "" {
		path = "the file"
	}
	return &keyError{fmt.Sprintf("line %d: %s", n.Line, path), message}
}

// describe names a node in an error.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	case yaml.ScalarNode:
		if n.ShortTag() == "!!null" {
			return "nothing"
		}
		if len(n.Value) > 80 {
			return fmt.Sprintf("%q…", n.Value[:80])
		}
		return fmt.Sprintf("%q", n.Value)
	}
	return "something else"
}
