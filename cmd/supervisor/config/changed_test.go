package config

import (
	"reflect"
	"testing"

	"github.com/stretchr/testify/assert"
)

// Every key of the configuration is found when it changes, by the path that the documentation gives it; and each is either
// taken over, left to the next start, or refused with its name.
func TestReloadKnowsEveryKey(t *testing.T) {
	t.Parallel()
	seen := 0
	var walk func(v reflect.Value, path string, old, fresh *Config)
	walk = func(v reflect.Value, path string, old, fresh *Config) {
		if v.Kind() == reflect.Struct {
			for i := range v.NumField() {
				if name := v.Type().Field(i).Tag.Get("toml"); name != "" && name != "-" {
					walk(v.Field(i), join(path, name), old, fresh)
				}
			}
			return
		}
		was := reflect.New(v.Type()).Elem()
		was.Set(v)
		switch v.Kind() {
		case reflect.String:
			v.SetString("changed")
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.Int, reflect.Int64:
			v.SetInt(v.Int() + 1)
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 3, 3))
		case reflect.Map:
			v.Set(reflect.MakeMap(v.Type()))
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
		default:
			t.Fatalf("%s: a kind that this test doesn't know: %s", path, v.Kind())
		}
		assert.Equal(t, []string{path}, Changed(*old, *fresh))
		seen++
		v.Set(was)
	}
	old, fresh := Default(), Default()
	walk(reflect.ValueOf(&fresh).Elem(), "", &old, &fresh)
	assert.Greater(t, seen, 50)
	assert.Empty(t, Changed(old, fresh))
}
