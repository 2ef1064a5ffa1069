package strictjson

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"unicode"
)

// fields maps the exact name of every member of a struct to its type.
type fields map[string]reflect.Type

// fieldCache holds one entry per struct type of the program.
var fieldCache sync.Map // reflect.Type -> fields or error

// fieldsOf returns the members encoding/json sees in t: tags, embedding and the
// rule that the least nested name wins, a tagged one among equals, and nothing
// if that leaves several.
func fieldsOf(t reflect.Type) (fields, error) {
	if v, ok := fieldCache.Load(t); ok {
		if err, bad := v.(error); bad {
			return nil, err
		}
		return v.(fields), nil
	}
	fs, err := collect(t)
	if err != nil {
		fieldCache.Store(t, err)
		return nil, err
	}
	fieldCache.Store(t, fs)
	return fs, nil
}

// candidate is one field that may own a name.
type candidate struct {
	typ    reflect.Type
	tagged bool
}

func collect(t reflect.Type) (fields, error) {
	out := make(fields)
	taken := make(map[string]bool) // names decided at a lesser depth
	visited := map[reflect.Type]bool{}
	level := []reflect.Type{t}
	for len(level) > 0 {
		var next []reflect.Type
		found := make(map[string][]candidate)
		times := make(map[reflect.Type]int) // embedded twice at one depth: names are ambiguous
		for _, st := range level {
			times[st]++
		}
		for _, st := range level {
			if visited[st] {
				continue
			}
			visited[st] = true
			for i := range st.NumField() {
				f := st.Field(i)
				tag := f.Tag.Get("json")
				if tag == "-" {
					continue
				}
				name, options, _ := strings.Cut(tag, ",")
				if !validName(name) {
					name = ""
				}
				ft := f.Type
				if ft.Name() == "" && ft.Kind() == reflect.Pointer {
					ft = ft.Elem()
				}
				if f.Anonymous {
					if !f.IsExported() && ft.Kind() != reflect.Struct {
						continue
					}
					if name == "" && ft.Kind() == reflect.Struct {
						next = append(next, ft)
						continue
					}
				}
				if !f.IsExported() && !f.Anonymous {
					continue
				}
				for o := range strings.SplitSeq(options, ",") {
					if o == "string" {
						return nil, fmt.Errorf("cannot decode into %v: tag option \"string\" of %s is not supported", t, f.Name)
					}
				}
				c := candidate{typ: f.Type, tagged: name != ""}
				if name == "" {
					name = f.Name
				}
				for range times[st] {
					found[name] = append(found[name], c)
				}
			}
		}
		for name, cs := range found {
			if taken[name] {
				continue
			}
			taken[name] = true
			if c, ok := dominant(cs); ok {
				out[name] = c.typ
			}
		}
		level = next
	}
	return out, nil
}

// dominant picks among fields of one name and depth.
func dominant(cs []candidate) (candidate, bool) {
	if len(cs) == 1 {
		return cs[0], true
	}
	var tagged []candidate
	for _, c := range cs {
		if c.tagged {
			tagged = append(tagged, c)
		}
	}
	if len(tagged) == 1 {
		return tagged[0], true
	}
	return candidate{}, false
}

// validName is encoding/json's rule for the name in a tag.
func validName(s string) bool {
	for _, c := range s {
		if !strings.ContainsRune("!#$%&()*+-./:;<=>?@[]^_{|}~ ", c) && !unicode.IsLetter(c) && !unicode.IsDigit(c) {
			return false
		}
	}
	return s != ""
}
