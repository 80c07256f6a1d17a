package config

import (
	"reflect"
	"strings"
)

// Changed lists the keys whose values differ, as paths: "upgrade.probation.up". A list is one key, and so is a map.
func Changed(old, fresh Config) []string {
	var keys []string
	var walk func(a, b reflect.Value, path string)
	walk = func(a, b reflect.Value, path string) {
		if a.Kind() != reflect.Struct {
			if !reflect.DeepEqual(a.Interface(), b.Interface()) {
				keys = append(keys, path)
			}
			return
		}
		for i := range a.NumField() {
			name, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("toml"), ",")
			if name != "" && name != "-" {
				walk(a.Field(i), b.Field(i), join(path, name))
			}
		}
	}
	walk(reflect.ValueOf(old), reflect.ValueOf(fresh), "")
	return keys
}
