package config

import (
	"os"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
)

// row is a row of a table of the reference: key, type, default, meaning.
var row = regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\| [a-z ]+ \\| `([^`]*)` \\| .+ \\|$")

func TestReferenceListsEveryKey(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference/config.md")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	document := ""
	for _, m := range row.FindAllStringSubmatch(string(page), -1) {
		got = append(got, m[1])
		document += m[1] + " = " + m[2] + "\n"
	}
	if diff := cmp.Diff(Keys(), got); diff != "" {
		t.Errorf("keys of the code (-) and of docs/reference/config.md (+):\n%s", diff)
	}
	// The defaults in the table, as dotted keys, are a configuration.
	var documented file
	if err := toml.Unmarshal([]byte(document), &documented); err != nil {
		t.Fatalf("defaults of docs/reference/config.md:\n%s%v", document, err)
	}
	if diff := cmp.Diff(defaults(), documented); diff != "" {
		t.Errorf("defaults of the code (-) and of docs/reference/config.md (+):\n%s", diff)
	}
}

func TestExampleIsTheDefaults(t *testing.T) {
	const name = "../../docs/reference/config.example.toml"
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse(name, data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), c); diff != "" {
		t.Errorf("defaults (-) and example (+):\n%s", diff)
	}
	where := positions(data)
	for _, key := range Keys() {
		if _, ok := where[key]; !ok {
			t.Errorf("%s lacks %s", name, key)
		}
	}
}
