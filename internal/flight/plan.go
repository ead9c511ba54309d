package flight

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
)

// plan says how values of one type are taken apart: into numbers, and into lists
// of such values. It is made from the type, so that evidence which is added to it
// is recorded without a change here, and it is written at the head of a recording,
// so that one of another version can be read by the names.
type plan struct {
	Leaves []leaf `json:"leaves,omitempty"`
	Lists  []list `json:"lists,omitempty"`
}

// leaf is one number, or one string by its place in a table.
type leaf struct {
	Name  string `json:"name"` // fields of inner structs as Outer.Inner
	Kind  string `json:"kind"` // bool, int, uint, float or string
	index []int  // nil: this version does not know it
}

// list is a slice.
type list struct {
	Name  string `json:"name"`
	Elem  *plan  `json:"of"`
	index []int
}

// node is one value that was taken apart by a plan.
type node struct {
	vals  []int64
	lists [][]node
}

// planOf makes the plan of a type. It fails for what cannot be put together again.
func planOf(t reflect.Type) (*plan, error) {
	p := &plan{}
	if t.Kind() != reflect.Struct {
		return p, p.add("", t, []int{})
	}
	return p, p.fields("", t, nil)
}

func (p *plan) fields(prefix string, t reflect.Type, at []int) error {
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			return fmt.Errorf("field %s%s of %s is not exported and cannot be recorded", prefix, f.Name, t)
		}
		index := append(append([]int{}, at...), i)
		if f.Type.Kind() == reflect.Struct {
			if err := p.fields(prefix+f.Name+".", f.Type, index); err != nil {
				return err
			}
			continue
		}
		if err := p.add(prefix+f.Name, f.Type, index); err != nil {
			return err
		}
	}
	return nil
}

func (p *plan) add(name string, t reflect.Type, index []int) error {
	kind := ""
	switch t.Kind() {
	case reflect.Bool:
		kind = "bool"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		kind = "int"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		kind = "uint"
	case reflect.Float32, reflect.Float64:
		kind = "float"
	case reflect.String:
		kind = "string"
	case reflect.Slice:
		elem, err := planOf(t.Elem())
		if err != nil {
			return err
		}
		p.Lists = append(p.Lists, list{name, elem, index})
		return nil
	default:
		return fmt.Errorf("%s is a %s, which cannot be recorded", name, t)
	}
	p.Leaves = append(p.Leaves, leaf{name, kind, index})
	return nil
}

// bind makes the plan of a recording fit this version's type. It returns what of
// the recording this version does not know.
func (p *plan) bind(own *plan, path string) (unknown []string) {
	for i := range p.Leaves {
		l := &p.Leaves[i]
		l.index = nil
		for _, o := range own.Leaves {
			if o.Name == l.Name && o.Kind == l.Kind {
				l.index = o.index
			}
		}
		if l.index == nil {
			unknown = append(unknown, path+l.Name)
		}
	}
	for i := range p.Lists {
		l := &p.Lists[i]
		l.index = nil
		for _, o := range own.Lists {
			if o.Name == l.Name {
				l.index = o.index
				unknown = append(unknown, l.Elem.bind(o.Elem, path+l.Name+".")...)
			}
		}
		if l.index == nil {
			unknown = append(unknown, path+l.Name)
		}
	}
	return unknown
}

// check bounds a plan that came from a file.
func (p *plan) check(depth int) error {
	if depth > 8 || len(p.Leaves) > 1000 || len(p.Lists) > 100 {
		return errors.New("the description of the evidence is larger than any")
	}
	for i := range p.Lists {
		if p.Lists[i].Elem == nil {
			return fmt.Errorf("list %q has no description", p.Lists[i].Name)
		}
		if err := p.Lists[i].Elem.check(depth + 1); err != nil {
			return err
		}
	}
	return nil
}

// fill takes v apart into n, whose memory is used again.
func (p *plan) fill(v reflect.Value, n *node, intern func(string) int64) {
	n.vals = resize(n.vals, len(p.Leaves))
	for i := range p.Leaves {
		f := field(v, p.Leaves[i].index)
		switch p.Leaves[i].Kind {
		case "bool":
			n.vals[i] = 0
			if f.Bool() {
				n.vals[i] = 1
			}
		case "int":
			n.vals[i] = f.Int()
		case "uint":
			n.vals[i] = int64(f.Uint())
		case "float":
			n.vals[i] = int64(math.Float64bits(f.Float()))
		case "string":
			n.vals[i] = intern(f.String())
		}
	}
	n.lists = resize(n.lists, len(p.Lists))
	for i := range p.Lists {
		f := field(v, p.Lists[i].index)
		n.lists[i] = resize(n.lists[i], f.Len())
		for k := range n.lists[i] {
			p.Lists[i].Elem.fill(f.Index(k), &n.lists[i][k], intern)
		}
	}
}

// field is v.FieldByIndex, and v itself for an empty index.
func field(v reflect.Value, index []int) reflect.Value {
	for _, i := range index {
		v = v.Field(i)
	}
	return v
}

func resize[T any](s []T, n int) []T {
	if n <= cap(s) {
		return s[:n]
	}
	return append(s[:cap(s)], make([]T, n-cap(s))...)
}

// build puts a value together again.
func (p *plan) build(n *node, v reflect.Value, table []string) error {
	for i := range p.Leaves {
		l := &p.Leaves[i]
		if l.index == nil {
			continue
		}
		f, x := field(v, l.index), n.vals[i]
		switch {
		case l.Kind == "bool":
			f.SetBool(x != 0)
		case l.Kind == "int" && !f.OverflowInt(x):
			f.SetInt(x)
		case l.Kind == "uint" && !f.OverflowUint(uint64(x)):
			f.SetUint(uint64(x))
		case l.Kind == "float":
			f.SetFloat(math.Float64frombits(uint64(x)))
		case l.Kind == "string" && x >= 0 && x < int64(len(table)):
			f.SetString(table[x])
		default:
			return fmt.Errorf("%s has an impossible value", l.Name)
		}
	}
	for i := range p.Lists {
		l := &p.Lists[i]
		if l.index == nil || len(n.lists[i]) == 0 {
			continue
		}
		f := field(v, l.index)
		f.Set(reflect.MakeSlice(f.Type(), len(n.lists[i]), len(n.lists[i])))
		for k := range n.lists[i] {
			if err := l.Elem.build(&n.lists[i][k], f.Index(k), table); err != nil {
				return err
			}
		}
	}
	return nil
}

// same says whether two values are equal; a nil one is all zero and empty.
func same(a, b *node) bool {
	if a == nil {
		a, b = b, a
	}
	if a == nil {
		return true
	}
	for i, x := range a.vals {
		if x != b.val(i) {
			return false
		}
	}
	for i, l := range a.lists {
		other := b.list(i)
		if len(l) != len(other) {
			return false
		}
		for k := range l {
			if !same(&l[k], &other[k]) {
				return false
			}
		}
	}
	return true
}

func (n *node) val(i int) int64 {
	if n == nil || i >= len(n.vals) {
		return 0
	}
	return n.vals[i]
}

func (n *node) list(i int) []node {
	if n == nil || i >= len(n.lists) {
		return nil
	}
	return n.lists[i]
}

// diff appends what makes old into cur: the number of leaves that differ, for
// each the distance from the one before and the difference; then for each list
// how many fall off its front, its new length, the number of entries that differ
// and for each the distance and its own diff. Evidence is mostly appended at one
// end and dropped at the other, and mostly differs by a little time.
func (p *plan) diff(old, cur *node, out []byte) []byte {
	changed := int64(0)
	for i, x := range cur.vals {
		if x != old.val(i) {
			changed++
		}
	}
	out = number(out, changed)
	last := 0
	for i, x := range cur.vals {
		if x != old.val(i) {
			out = number(number(out, int64(i-last)), x-old.val(i))
			last = i
		}
	}
	for i := range cur.lists {
		out = p.Lists[i].Elem.diffList(old.list(i), cur.lists[i], out)
	}
	return out
}

func (p *plan) diffList(old, cur []node, out []byte) []byte {
	drop := 0
	for k := range old {
		if len(cur) > 0 && same(&old[k], &cur[0]) {
			drop = k
			break
		}
	}
	old = old[drop:]
	changed := int64(0)
	for k := range cur {
		if !same(at(old, k), &cur[k]) {
			changed++
		}
	}
	out = number(number(number(out, int64(drop)), int64(len(cur))), changed)
	last := 0
	for k := range cur {
		if base := at(old, k); !same(base, &cur[k]) {
			out = p.diff(base, &cur[k], number(out, int64(k-last)))
			last = k
		}
	}
	return out
}

func at(list []node, k int) *node {
	if k < len(list) {
		return &list[k]
	}
	return nil
}

func number(out []byte, x int64) []byte {
	if len(out) > 0 && out[len(out)-1] != '[' {
		out = append(out, ',')
	}
	return strconv.AppendInt(out, x, 10)
}

// Bounds of one input in a file that may be damaged: 200 hosts with all their
// evidence are a tenth of it.
const (
	maxList  = 1 << 14
	maxNodes = 1 << 18
	maxCells = 1 << 22 // numbers and lists in all nodes
)

// numbers are read one by one.
type numbers struct {
	rest  []int64
	nodes int
	cells int
}

// count takes n more values of a plan, which may be of any width.
func (r *numbers) count(n int, p *plan) error {
	r.nodes += n
	r.cells += n * (len(p.Leaves) + len(p.Lists))
	if r.nodes > maxNodes || r.cells > maxCells {
		return errHuge
	}
	return nil
}

var (
	errShort = errors.New("the evidence ends too soon")
	errHuge  = errors.New("the evidence is larger than any")
	errOrder = errors.New("the evidence does not fit what came before it")
)

func (r *numbers) next() (int64, error) {
	if len(r.rest) == 0 {
		return 0, errShort
	}
	x := r.rest[0]
	r.rest = r.rest[1:]
	return x, nil
}

// upTo reads a number from 0 to most.
func (r *numbers) upTo(most int) (int, error) {
	x, err := r.next()
	if err == nil && (x < 0 || x > int64(most)) {
		err = errOrder
	}
	return int(x), err
}

// apply is the reverse of diff.
func (p *plan) apply(old *node, r *numbers) (cur node, err error) {
	if err := r.count(1, p); err != nil {
		return cur, err
	}
	cur = node{vals: make([]int64, len(p.Leaves)), lists: make([][]node, len(p.Lists))}
	if old != nil {
		copy(cur.vals, old.vals)
	}
	changed, err := r.upTo(len(p.Leaves))
	if err != nil {
		return cur, err
	}
	for i := 0; changed > 0; changed-- {
		gap, err := r.upTo(len(p.Leaves))
		if err != nil {
			return cur, err
		}
		if i += gap; i >= len(cur.vals) {
			return cur, errOrder
		}
		d, err := r.next()
		if err != nil {
			return cur, err
		}
		cur.vals[i] += d
	}
	for i := range p.Lists {
		if cur.lists[i], err = p.Lists[i].Elem.applyList(old.list(i), r); err != nil {
			return cur, err
		}
	}
	return cur, nil
}

func (p *plan) applyList(old []node, r *numbers) ([]node, error) {
	drop, err := r.upTo(len(old))
	if err != nil {
		return nil, err
	}
	old = old[drop:]
	n, err := r.upTo(maxList)
	if err != nil {
		return nil, err
	}
	if err := r.count(n, p); err != nil {
		return nil, err
	}
	cur := make([]node, n)
	for k := range cur {
		if k < len(old) {
			cur[k] = old[k]
		} else {
			cur[k] = node{vals: make([]int64, len(p.Leaves)), lists: make([][]node, len(p.Lists))}
		}
	}
	changed, err := r.upTo(n)
	if err != nil {
		return nil, err
	}
	for k := 0; changed > 0; changed-- {
		gap, err := r.upTo(n)
		if err != nil {
			return nil, err
		}
		if k += gap; k >= n {
			return nil, errOrder
		}
		if cur[k], err = p.apply(at(old, k), r); err != nil {
			return nil, err
		}
	}
	return cur, nil
}
