package pki

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

const server = "https://10.88.7.2:6443"

// adminConf is an admin.conf with short secrets.
func adminConf(t testing.TB, name, server, secret string) []byte {
	t.Helper()
	data := base64.StdEncoding.EncodeToString([]byte(secret))
	k := newKubeconfig(name, entryName(name), cluster{Server: server, CAData: data}, user{CertData: data, KeyData: data})
	content, err := encodeYAML(k, true)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

const merged = `apiVersion: v1
kind: Config
clusters:
- name: bulkhead-demo
  cluster:
    server: https://10.88.7.2:6443
    certificate-authority-data: b25l
users:
- name: bulkhead-demo
  user:
    client-certificate-data: b25l
    client-key-data: b25l
contexts:
- name: demo
  context:
    cluster: bulkhead-demo
    user: bulkhead-demo
current-context: demo
`

const foreign = `# mine: don't touch
apiVersion: v1
clusters:
- cluster:
    certificate-authority: /etc/ca.crt   # by hand
    extensions:
    - extension: {provider: other}
      name: info
    server: https://prod.example:6443
  name: prod
contexts:
- context:
    cluster: prod
    namespace: team
    user: me
  name: prod
current-context: prod
kind: Config
preferences: {colors: true}
users:
- name: me
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1
      command: get-token
      args: ["--region", 'eu']
      env: null
`

func TestMerge(t *testing.T) {
	tests := []struct{ name, before, after string }{
		{"no file", "", merged},
		{"empty lists, as kubectl leaves them", "apiVersion: v1\nclusters: []\ncontexts: null\ncurrent-context: \"\"\nkind: Config\npreferences: {}\nusers: null\n",
			`apiVersion: v1
clusters:
- name: bulkhead-demo
  cluster:
    server: https://10.88.7.2:6443
    certificate-authority-data: b25l
contexts:
- name: demo
  context:
    cluster: bulkhead-demo
    user: bulkhead-demo
current-context: demo
kind: Config
preferences: {}
users:
- name: bulkhead-demo
  user:
    client-certificate-data: b25l
    client-key-data: b25l
`},
		{"comments only", "# here goes my kubeconfig", "# here goes my kubeconfig\n" + merged},
		{"another cluster's", foreign, `# mine: don't touch
apiVersion: v1
clusters:
- cluster:
    certificate-authority: /etc/ca.crt # by hand
    extensions:
    - extension: {provider: other}
      name: info
    server: https://prod.example:6443
  name: prod
- name: bulkhead-demo
  cluster:
    server: https://10.88.7.2:6443
    certificate-authority-data: b25l
contexts:
- context:
    cluster: prod
    namespace: team
    user: me
  name: prod
- name: demo
  context:
    cluster: bulkhead-demo
    user: bulkhead-demo
current-context: demo
kind: Config
preferences: {colors: true}
users:
- name: me
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1
      command: get-token
      args: ["--region", 'eu']
      env: null
- name: bulkhead-demo
  user:
    client-certificate-data: b25l
    client-key-data: b25l
`},
		{"an older one of the same name, with a namespace set",
			strings.NewReplacer("b25l", "b2xk", "10.88.7.2", "10.88.3.2", "current-context: demo", "current-context: prod",
				"    user: bulkhead-demo\n", "    user: bulkhead-demo\n    namespace: mine\n").Replace(merged),
			strings.Replace(merged, "    user: bulkhead-demo\n", "    user: bulkhead-demo\n    namespace: mine\n", 1)},
		{"JSON", `{"apiVersion": "v1", "kind": "Config", "clusters": [{"name": "a", "cluster": {"server": "https://a"}}]}`,
			`{"apiVersion": "v1", "kind": "Config", "clusters": [{"name": "a", "cluster": {"server": "https://a"}}, {name: bulkhead-demo, cluster: {server: 'https://10.88.7.2:6443', certificate-authority-data: b25l}}], ` +
				`users: [{name: bulkhead-demo, user: {client-certificate-data: b25l, client-key-data: b25l}}], contexts: [{name: demo, context: {cluster: bulkhead-demo, user: bulkhead-demo}}], current-context: demo}` + "\n"},
		{"indented lists", "apiVersion: v1\nclusters:\n  - name: a\n    cluster:\n      server: https://a\n", `apiVersion: v1
clusters:
  - name: a
    cluster:
      server: https://a
  - name: bulkhead-demo
    cluster:
      server: https://10.88.7.2:6443
      certificate-authority-data: b25l
users:
  - name: bulkhead-demo
    user:
      client-certificate-data: b25l
      client-key-data: b25l
contexts:
  - name: demo
    context:
      cluster: bulkhead-demo
      user: bulkhead-demo
current-context: demo
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "kube", "config")
			if tt.before != "" {
				must(t, os.Mkdir(filepath.Dir(file), 0o700))
				must(t, os.WriteFile(file, []byte(tt.before), 0o644))
			}
			for _, want := range []bool{true, false} {
				changed, err := MergeKubeconfig(file, adminConf(t, "demo", server, "one"), "demo")
				must(t, err)
				if changed != want {
					t.Errorf("changed: %v, want %v", changed, want)
				}
				if diff := cmp.Diff(tt.after, readFile(t, file)); diff != "" {
					t.Error(diff)
				}
			}
			info, err := os.Stat(file)
			must(t, err)
			if info.Mode() != 0o600 {
				t.Errorf("mode %v", info.Mode())
			}
			left, err := os.ReadDir(filepath.Dir(file))
			must(t, err)
			if len(left) != 1 {
				t.Errorf("files are left beside it: %v", left)
			}
		})
	}
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestMergeTightensTheMode(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	must(t, os.WriteFile(file, []byte(merged), 0o644))
	changed, err := MergeKubeconfig(file, adminConf(t, "demo", server, "one"), "demo")
	must(t, err)
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 || !changed {
		t.Errorf("changed: %v, mode %v, %v", changed, info.Mode(), err)
	}
}

func TestMergeRefuses(t *testing.T) {
	tests := []struct {
		name, before, want string
		class              func(error) bool
	}{
		{"context of another cluster", strings.ReplaceAll(foreign, "name: prod", "name: demo"), "it has a context \"demo\" of another cluster: rename that", errdefs.IsAlreadyExists},
		{"no YAML", "apiVersion: v1\n\tclusters: []\n", "is no kubeconfig and is left as it is: ", errdefs.IsInvalidArgument},
		{"no mapping", "just text\n", "is no kubeconfig and is left as it is: it is no mapping", errdefs.IsInvalidArgument},
		{"another kind", "apiVersion: v1\nkind: Pod\n", `its kind is "Pod", not Config`, errdefs.IsInvalidArgument},
		{"two documents", merged + "---\n" + merged, "it has more than one document", errdefs.IsInvalidArgument},
		{"clusters is no list", "clusters: {a: b}\n", "line 1: clusters is no list", errdefs.IsInvalidArgument},
		{"clusters is an alias", "contexts: &a []\nclusters: *a\n", "line 2: clusters is no list", errdefs.IsInvalidArgument},
		{"user is no mapping", "kind: Config\nusers:\n- me\n", "line 3: an element of users is no mapping", errdefs.IsInvalidArgument},
		{"a key twice", "kind: Config\nextra: 1\nextra: 2\n", "can't be changed without a loss and is left as it is: ", errdefs.IsInvalidArgument},
		{"what the encoder writes wrongly", "&000: 000000\n0000000000000: 000000\n", "can't be changed without a loss and is left as it is: ", errdefs.IsInvalidArgument},
		{"huge", strings.Repeat("#", maxFile+1), "has more than 1048576 bytes", errdefs.IsInvalidArgument},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "config")
			must(t, os.WriteFile(file, []byte(tt.before), 0o644))
			_, err := MergeKubeconfig(file, adminConf(t, "demo", server, "one"), "demo")
			if err == nil || !tt.class(err) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error: %v, want %q", err, tt.want)
			}
			if got := readFile(t, file); got != tt.before {
				t.Errorf("the file was changed:\n%.2000s", got)
			}
			if _, err := os.Stat(file + ".lock"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the lock is left: %v", err)
			}
		})
	}
}

func TestMergeFollowsLinks(t *testing.T) {
	for _, exists := range []bool{true, false} {
		dir := t.TempDir()
		must(t, os.MkdirAll(filepath.Join(dir, "dotfiles"), 0o700))
		target, link := filepath.Join(dir, "dotfiles", "kubeconfig"), filepath.Join(dir, "config")
		if exists {
			must(t, os.WriteFile(target, []byte("kind: Config\n"), 0o600))
		}
		must(t, os.Symlink("middle", link))
		must(t, os.Symlink("dotfiles/kubeconfig", filepath.Join(dir, "middle")))
		_, err := MergeKubeconfig(link, adminConf(t, "demo", server, "one"), "demo")
		must(t, err)
		if to, err := os.Readlink(link); err != nil || to != "middle" {
			t.Errorf("the link is %q now, %v", to, err)
		}
		if got := readFile(t, target); !strings.Contains(got, "bulkhead-demo") {
			t.Errorf("the target has %s", got)
		}
	}
	loop := filepath.Join(t.TempDir(), "loop")
	must(t, os.Symlink("loop", loop))
	if _, err := MergeKubeconfig(loop, adminConf(t, "demo", server, "one"), "demo"); err == nil {
		t.Error("a link to itself was followed")
	}
}

func TestStaleLock(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	must(t, os.WriteFile(file+".lock", nil, 0o600))
	_, err := change(file, "demo", 0, true, func(*kubeconfigFile) error { return errors.New("the lock didn't hold") })
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "config.lock exists: another program is changing the file; if none is, remove it") {
		t.Errorf("error: %v", err)
	}
	if _, err := os.Stat(file + ".lock"); err != nil {
		t.Errorf("another's lock was removed: %v", err)
	}
	// One that goes away is waited for.
	done := make(chan error, 1)
	go func() {
		_, err := change(file, "demo", time.Minute, true, func(k *kubeconfigFile) error { return k.merge("demo", cluster{Server: server}, user{}) })
		done <- err
	}()
	must(t, os.Remove(file+".lock"))
	must(t, <-done)
}

func TestMergeAtTheSameTime(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	var wait sync.WaitGroup
	names := []string{"a", "b", "c", "d", "e", "f"}
	for _, name := range names {
		conf := adminConf(t, name, server, name)
		wait.Go(func() {
			if _, err := MergeKubeconfig(file, conf, name); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	content := readFile(t, file)
	for _, name := range names {
		if !strings.Contains(content, "name: bulkhead-"+name+"\n") {
			t.Errorf("cluster %s was lost:\n%s", name, content)
		}
	}
}

func TestRemove(t *testing.T) {
	with := func(t *testing.T, before string) string {
		t.Helper()
		file := filepath.Join(t.TempDir(), "config")
		must(t, os.WriteFile(file, []byte(before), 0o640))
		_, err := MergeKubeconfig(file, adminConf(t, "demo", server, "one"), "demo")
		must(t, err)
		return file
	}
	t.Run("all else stays", func(t *testing.T) {
		file := with(t, foreign)
		must(t, os.Chmod(file, 0o640))
		must(t, RemoveFromKubeconfig(file, "demo", server))
		want := strings.NewReplacer("ca.crt   #", "ca.crt #", "current-context: prod", `current-context: ""`).Replace(foreign)
		if diff := cmp.Diff(want, readFile(t, file)); diff != "" {
			t.Error(diff)
		}
		if info, err := os.Stat(file); err != nil || info.Mode() != 0o640 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	})
	t.Run("another current context stays", func(t *testing.T) {
		file := with(t, foreign)
		must(t, os.WriteFile(file, []byte(strings.Replace(readFile(t, file), "current-context: demo", "current-context: prod", 1)), 0o600))
		must(t, RemoveFromKubeconfig(file, "demo", server))
		if got := readFile(t, file); !strings.Contains(got, "current-context: prod\n") || strings.Contains(got, "demo") {
			t.Error(got)
		}
	})
	t.Run("renamed context", func(t *testing.T) {
		file := with(t, "kind: Config\n")
		must(t, os.WriteFile(file, []byte(strings.ReplaceAll(readFile(t, file), "name: demo", "name: mine")), 0o600))
		must(t, RemoveFromKubeconfig(file, "demo", server))
		if got, want := readFile(t, file), "kind: Config\nclusters: []\nusers: []\ncontexts: []\ncurrent-context: demo\n"; got != want {
			t.Error(got)
		}
	})
	t.Run("a namesake's stays", func(t *testing.T) {
		file := with(t, foreign)
		before := readFile(t, file)
		must(t, RemoveFromKubeconfig(file, "demo", "https://10.88.8.2:6443"))
		must(t, RemoveFromKubeconfig(file, "other", server))
		if diff := cmp.Diff(before, readFile(t, file)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("no file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "none", "config")
		must(t, RemoveFromKubeconfig(file, "demo", server))
		if _, err := os.Stat(filepath.Dir(file)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the directory was made: %v", err)
		}
	})
	t.Run("damaged", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "config")
		must(t, os.WriteFile(file, []byte("{"), 0o600))
		if err := RemoveFromKubeconfig(file, "demo", server); !errdefs.IsInvalidArgument(err) {
			t.Errorf("error: %v", err)
		}
	})
}

func TestCheckRest(t *testing.T) {
	if err := checkRest([]byte(foreign), []byte(foreign+"# more\n"), "demo"); err != nil {
		t.Error(err)
	}
	for cut, want := range map[string]string{
		"preferences: {colors: true}\n": `"preferences" would be lost`, "    namespace: team\n": `"contexts" would change`, "  name: prod\n": " would change",
	} {
		err := checkRest([]byte(foreign), []byte(strings.Replace(foreign, cut, "", 1)), "demo")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("without %q: %v, want %s", cut, err, want)
		}
	}
}

// Whatever a kubeconfig has, a cluster that is merged is found in what is written, and gone when it is removed.
func FuzzMerge(f *testing.F) {
	for _, seed := range []string{"", merged, foreign, "# only\n", "{}", "a: &x [1]\nb: *x\nclusters: []\n", "kind: Config\ncurrent-context: |\n  x\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := parseKubeconfigFile(data)
		if err != nil {
			return
		}
		if err := k.merge("fuzz", cluster{Server: server, CAData: "eA=="}, user{CertData: "eA==", KeyData: "eA=="}); err != nil {
			return
		}
		text, err := k.encode()
		if err != nil {
			t.Fatal(err)
		}
		if checkRest(data, text, "fuzz") != nil {
			return // refused; what is written is what counts here
		}
		again, err := parseKubeconfigFile(text)
		if err != nil {
			t.Fatalf("%v:\n%s", err, text)
		}
		if again.find("clusters", "bulkhead-fuzz") == nil || value(again.root, "current-context") != "fuzz" {
			t.Fatalf("the cluster is missing:\n%s", text)
		}
		if err := again.remove("fuzz", server); err != nil {
			t.Fatal(err)
		}
		without, err := again.encode()
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(without, []byte("bulkhead-fuzz")) && !bytes.Contains(data, []byte("bulkhead-fuzz")) {
			t.Errorf("the cluster is still in\n%s", without)
		}
	})
}
