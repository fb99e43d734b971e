package config

import "reflect"

// Keys lists the full name of every key, in the order of the format.
func Keys() []string { return keysOf(reflect.TypeFor[file](), "") }

func keysOf(t reflect.Type, prefix string) []string {
	var keys []string
	for i := range t.NumField() {
		name := prefix + t.Field(i).Tag.Get("toml")
		if t.Field(i).Type.Kind() == reflect.Struct {
			keys = append(keys, keysOf(t.Field(i).Type, name+".")...)
		} else {
			keys = append(keys, name)
		}
	}
	return keys
}
