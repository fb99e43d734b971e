package pki

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"go.yaml.in/yaml/v3"

	"bulkhead.dev/bulkhead/internal/cluster/spec/durable"
)

// lockWait is how long the lock of a kubeconfig is waited for: kubectl holds it for the time of a write.
const lockWait = 5 * time.Second

// MergeKubeconfig puts a cluster into a kubeconfig and makes its context the current one. The context has the cluster's name, and
// the entries of cluster and user are named bulkhead-CLUSTER; what they were is replaced, but a namespace that was set in the
// context stays. Everything else in the file stays, comments included. The file is made if it is missing, and it gets the mode
// 0600; a symbolic link is followed. admin is the content of admin.conf. changed says whether the file was written.
//
// A context of that name which is of another cluster is ErrAlreadyExists; a file that is no kubeconfig is ErrInvalidArgument,
// and one that somebody else has locked for five seconds ErrUnavailable. Then nothing was changed.
func MergeKubeconfig(into string, admin []byte, cluster string) (changed bool, err error) {
	var from kubeconfig
	if err := yaml.Unmarshal(admin, &from); err != nil {
		return false, fmt.Errorf("read credentials of cluster %s: %w", cluster, err)
	}
	if len(from.Clusters) != 1 || len(from.Users) != 1 {
		return false, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("read credentials of cluster %s: they must be of one cluster and one user", cluster))
	}
	changed, err = change(into, cluster, lockWait, true, func(doc *kubeconfigFile) error {
		return doc.merge(cluster, from.Clusters[0].Cluster, from.Users[0].User)
	})
	if err != nil {
		return false, fmt.Errorf("write cluster %s into kubeconfig: %w", cluster, err)
	}
	return changed, nil
}

// RemoveFromKubeconfig undoes MergeKubeconfig if the file's entry for the cluster has that server: it may be of a namesake. The
// contexts of the cluster go too, whatever they are named by now; where one was the current one, none is. A missing file is
// nothing to do.
func RemoveFromKubeconfig(file, cluster, server string) error {
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	_, err := change(file, cluster, lockWait, false, func(doc *kubeconfigFile) error { return doc.remove(cluster, server) })
	if err != nil {
		return fmt.Errorf("remove cluster %s from kubeconfig: %w", cluster, err)
	}
	return nil
}

// change edits what a kubeconfig has of a cluster, under the file's lock. A private one, and one that is new, gets the mode 0600; another keeps its own.
func change(file, cluster string, wait time.Duration, private bool, edit func(*kubeconfigFile) error) (changed bool, err error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return false, err
	}
	unlock, err := lockFile(file, wait)
	if err != nil {
		return false, err
	}
	defer unlock()
	target, err := follow(file)
	if err != nil {
		return false, err
	}
	data, err := read(target)
	if err != nil {
		return false, err
	}
	doc, err := parseKubeconfigFile(data)
	if err != nil {
		return false, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%s is no kubeconfig and is left as it is: %v", file, err))
	}
	before, err := doc.encode()
	if err != nil {
		return false, err
	}
	if err := edit(doc); err != nil {
		return false, err
	}
	after, err := doc.encode()
	if err != nil {
		return false, err
	}
	if err := checkRest(data, after, cluster); err != nil {
		return false, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%s can't be changed without a loss and is left as it is: %v", file, err))
	}
	present, mode := fs.FileMode(0), fs.FileMode(0o600)
	if data != nil {
		info, err := os.Stat(target)
		if err != nil {
			return false, err
		}
		present = info.Mode().Perm()
		if !private {
			mode = present
		}
	}
	if data != nil && bytes.Equal(before, after) && mode == present {
		return false, nil
	}
	return true, durable.Write(target, after, mode)
}

// checkRest makes sure that nothing of others is lost. It could be where the encoder doesn't write what the decoder has read: it
// has such corners, and what is at stake is the way into somebody's clusters.
func checkRest(before, after []byte, cluster string) error {
	was, err := rest(before, cluster)
	if err != nil {
		return err
	}
	is, err := rest(after, cluster)
	if err != nil {
		return err
	}
	for key := range is {
		if !reflect.DeepEqual(was[key], is[key]) {
			return fmt.Errorf("%q would change", key)
		}
	}
	for key := range was {
		if _, ok := is[key]; !ok {
			return fmt.Errorf("%q would be lost", key)
		}
	}
	return nil
}

// rest returns a kubeconfig without the entries of a cluster and what is set with them.
func rest(data []byte, cluster string) (map[string]any, error) {
	var all map[string]any
	if err := yaml.Unmarshal(data, &all); err != nil {
		return nil, err
	}
	for _, key := range []string{"apiVersion", "kind", "current-context"} {
		delete(all, key)
	}
	for _, key := range []string{"clusters", "users", "contexts"} {
		items, _ := all[key].([]any)
		items = slices.DeleteFunc(items, func(item any) bool {
			entry, _ := item.(map[string]any)
			context, _ := entry["context"].(map[string]any)
			return entry["name"] == entryName(cluster) || context["cluster"] == entryName(cluster)
		})
		if delete(all, key); len(items) > 0 {
			all[key] = items
		}
	}
	return all, nil
}

// lockFile makes FILE.lock, which is how client-go's clientcmd keeps programs from changing a kubeconfig at the same time.
func lockFile(file string, wait time.Duration) (unlock func(), err error) {
	lock := file + ".lock"
	for deadline := time.Now().Add(wait); ; time.Sleep(20 * time.Millisecond) {
		f, err := os.OpenFile(lock, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0)
		if err == nil {
			f.Close()
			return func() { os.Remove(lock) }, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		if time.Now().After(deadline) {
			return nil, errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("%s exists: another program is changing the file; if none is, remove it", lock))
		}
	}
}

// follow resolves symbolic links, the last of which may point to nothing yet.
func follow(file string) (string, error) {
	for range 40 {
		target, err := os.Readlink(file)
		switch {
		case errors.Is(err, fs.ErrNotExist), err != nil && isNoLink(file):
			return file, nil
		case err != nil:
			return "", err
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(file), target)
		}
		file = target
	}
	return "", fmt.Errorf("%s has too many symbolic links", file)
}

func isNoLink(file string) bool {
	info, err := os.Lstat(file)
	return err == nil && info.Mode()&fs.ModeSymlink == 0
}

// kubeconfigFile is a user's kubeconfig, as the nodes of its YAML: what isn't touched comes out as it was.
type kubeconfigFile struct {
	doc  *yaml.Node
	root *yaml.Node
	// preamble is what was in a file of comments only.
	preamble []byte
	compact  bool
}

func parseKubeconfigFile(data []byte) (*kubeconfigFile, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := decoder.Decode(&doc); errors.Is(err, io.EOF) || err == nil && isNull(doc.Content[0]) {
		fresh := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		k := &kubeconfigFile{doc: fresh, root: fresh, compact: true}
		if errors.Is(err, io.EOF) {
			k.preamble = data
		}
		setScalar(fresh, "apiVersion", "v1")
		setScalar(fresh, "kind", "Config")
		return k, nil
	} else if err != nil {
		return nil, err
	}
	if err := decoder.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, errors.New("it has more than one document")
	}
	k := &kubeconfigFile{doc: &doc, root: doc.Content[0], compact: true}
	if k.root.Kind != yaml.MappingNode {
		return nil, errors.New("it is no mapping")
	}
	if kind := get(k.root, "kind"); kind != nil && kind.Value != "Config" {
		return nil, fmt.Errorf("its kind is %q, not Config", kind.Value)
	}
	for _, key := range []string{"clusters", "contexts", "users"} {
		list := get(k.root, key)
		if list == nil || isNull(list) {
			continue
		}
		if err := checkList(key, list); err != nil {
			return nil, err
		}
		if list.Style&yaml.FlowStyle == 0 && len(list.Content) > 0 && list.Column > k.root.Column {
			k.compact = false
		}
	}
	return k, nil
}

func checkList(key string, list *yaml.Node) error {
	if list.Kind != yaml.SequenceNode {
		return fmt.Errorf("line %d: %s is no list", list.Line, key)
	}
	for _, item := range list.Content {
		if item.Kind != yaml.MappingNode {
			return fmt.Errorf("line %d: an element of %s is no mapping", item.Line, key)
		}
	}
	return nil
}

func (k *kubeconfigFile) encode() ([]byte, error) {
	data, err := encodeYAML(k.doc, k.compact)
	if err != nil {
		return nil, err
	}
	if len(k.preamble) > 0 && !bytes.HasSuffix(k.preamble, []byte("\n")) {
		return slices.Concat(k.preamble, []byte("\n"), data), nil
	}
	return slices.Concat(k.preamble, data), nil
}

func (k *kubeconfigFile) merge(name string, c cluster, u user) error {
	entry := entryName(name)
	if old := k.find("contexts", name); old != nil {
		if context := get(old, "context"); context == nil || value(context, "cluster") != entry {
			return errdefs.ErrAlreadyExists.WithMessage(fmt.Sprintf(
				"it has a context %q of another cluster: rename that (kubectl config rename-context %s OTHER), or write the credentials to another file with --file", name, name))
		}
	}
	var clusterNode, userNode yaml.Node
	if err := errors.Join(clusterNode.Encode(c), userNode.Encode(u)); err != nil {
		return err
	}
	set(k.entry("clusters", entry), "cluster", &clusterNode)
	set(k.entry("users", entry), "user", &userNode)
	item := k.entry("contexts", name)
	context := get(item, "context")
	if context == nil || context.Kind != yaml.MappingNode {
		context = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		set(item, "context", context)
	}
	setScalar(context, "cluster", entry)
	setScalar(context, "user", entry)
	setScalar(k.root, "current-context", name)
	return nil
}

func (k *kubeconfigFile) remove(name, server string) error {
	entry := entryName(name)
	old := k.find("clusters", entry)
	if old == nil {
		return nil
	}
	if c := get(old, "cluster"); c == nil || value(c, "server") != server {
		return nil
	}
	k.drop("clusters", func(item *yaml.Node) bool { return value(item, "name") == entry })
	k.drop("users", func(item *yaml.Node) bool { return value(item, "name") == entry })
	k.drop("contexts", func(item *yaml.Node) bool {
		context := get(item, "context")
		if context == nil || value(context, "cluster") != entry {
			return false
		}
		if value(item, "name") == value(k.root, "current-context") {
			setScalar(k.root, "current-context", "")
		}
		return true
	})
	return nil
}

// find returns the element of a list that has the name; nil: there is none.
func (k *kubeconfigFile) find(list, name string) *yaml.Node {
	items := get(k.root, list)
	if items == nil {
		return nil
	}
	for _, item := range items.Content {
		if value(item, "name") == name {
			return item
		}
	}
	return nil
}

// entry is find, and appends the element if there is none.
func (k *kubeconfigFile) entry(list, name string) *yaml.Node {
	if item := k.find(list, name); item != nil {
		return item
	}
	items := get(k.root, list)
	if items == nil || items.Kind != yaml.SequenceNode {
		items = &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		set(k.root, list, items)
	}
	if len(items.Content) == 0 {
		items.Style &^= yaml.FlowStyle // "[]" becomes lines
	}
	item := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	setScalar(item, "name", name)
	items.Content = append(items.Content, item)
	return item
}

func (k *kubeconfigFile) drop(list string, which func(item *yaml.Node) bool) {
	items := get(k.root, list)
	if items == nil {
		return
	}
	items.Content = slices.DeleteFunc(items.Content, which)
	if len(items.Content) == 0 {
		items.Style |= yaml.FlowStyle
	}
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// get returns the value of a mapping's key; nil: it has none.
func get(mapping *yaml.Node, key string) *yaml.Node {
	if mapping.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return mapping.Content[i+1]
		}
	}
	return nil
}

// value returns the text of a mapping's key; "": it has none.
func value(mapping *yaml.Node, key string) string {
	if n := get(mapping, key); n != nil && n.Kind == yaml.ScalarNode {
		return n.Value
	}
	return ""
}

func set(mapping *yaml.Node, key string, to *yaml.Node) {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			mapping.Content[i+1] = to
			return
		}
	}
	mapping.Content = append(mapping.Content, text(key), to)
}

// setScalar leaves a value as it is written where it says that already.
func setScalar(mapping *yaml.Node, key, to string) {
	old := get(mapping, key)
	if old != nil && old.Kind == yaml.ScalarNode && old.Value == to && old.ShortTag() == "!!str" {
		return
	}
	fresh := text(to)
	if old != nil {
		fresh.LineComment = old.LineComment
	}
	set(mapping, key, fresh)
}

// text makes a string node; the encoder quotes what would be read as something else.
func text(s string) *yaml.Node {
	var n yaml.Node
	n.SetString(s)
	return &n
}
