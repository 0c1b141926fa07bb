package prompt

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/template"
	"text/template/parse"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// Fits reports all names in the template that the shape does not have, on any of its
// branches. Of what functions return, little is known: names behind them pass.
func (p *Prompt) Fits(shape *millracev1.DataShape) error {
	c := &checker{shape: shape, all: p.user, seen: map[string]bool{}}
	c.template("user", shape.GetRoot())
	if len(c.errs) == 0 {
		return nil
	}
	return fmt.Errorf("prompt %q, version %s: %w", p.cfg.Name, p.version, errors.Join(c.errs...))
}

// A checker follows the types of values through a template. A type is its name in the
// shape; "" is one of which nothing is known.
type checker struct {
	shape *millracev1.DataShape
	all   *template.Template
	tree  *parse.Tree
	vars  []variable
	seen  map[string]bool // templates that were checked, with the type of their dot
	errs  []error
}

type variable struct{ name, is string }

// text is the type of what is known to be text or a number.
const text = "string"

func (c *checker) template(name, dot string) {
	key := name + "\x00" + dot
	t := c.all.Lookup(name)
	if c.seen[key] || t == nil || t.Tree == nil {
		return
	}
	c.seen[key] = true
	tree, vars := c.tree, c.vars
	c.tree, c.vars = t.Tree, []variable{{"$", dot}}
	c.list(dot, t.Root)
	c.tree, c.vars = tree, vars
}

func (c *checker) list(dot string, n *parse.ListNode) {
	if n == nil {
		return
	}
	scope := len(c.vars)
	for _, one := range n.Nodes {
		switch one := one.(type) {
		case *parse.ActionNode:
			c.pipe(dot, one.Pipe)
		case *parse.IfNode:
			c.branch(dot, &one.BranchNode, func(string) string { return dot })
		case *parse.WithNode:
			c.branch(dot, &one.BranchNode, func(is string) string { return is })
		case *parse.RangeNode:
			c.branch(dot, &one.BranchNode, c.elem)
		case *parse.TemplateNode:
			is := ""
			if one.Pipe != nil {
				is = c.pipe(dot, one.Pipe)
			}
			c.template(one.Name, is)
		}
	}
	c.vars = c.vars[:scope]
}

// branch checks an if, with or range; inner returns what dot is within, from what the
// pipeline is.
func (c *checker) branch(dot string, n *parse.BranchNode, inner func(string) string) {
	scope := len(c.vars)
	is := inner(c.pipe(dot, n.Pipe))
	if n.NodeType == parse.NodeRange {
		for i, v := range n.Pipe.Decl {
			c.set(v.Ident[0], "")
			if i == len(n.Pipe.Decl)-1 {
				c.set(v.Ident[0], is)
			}
		}
	}
	c.list(is, n.List)
	c.list(dot, n.ElseList)
	c.vars = c.vars[:scope]
}

// set makes the innermost variable of the name one of that type.
func (c *checker) set(name, is string) {
	for i := range slices.Backward(c.vars) {
		if c.vars[i].name == name {
			c.vars[i].is = is
			return
		}
	}
}

func (c *checker) pipe(dot string, p *parse.PipeNode) string {
	is := ""
	for _, cmd := range p.Cmds {
		is = c.command(dot, cmd)
	}
	for _, v := range p.Decl {
		if p.IsAssign {
			c.set(v.Ident[0], "") // of this type or of the one before
			continue
		}
		c.vars = append(c.vars, variable{v.Ident[0], is})
	}
	return is
}

func (c *checker) command(dot string, cmd *parse.CommandNode) string {
	types := make([]string, len(cmd.Args))
	for i, arg := range cmd.Args {
		types[i] = c.arg(dot, arg)
	}
	id, ok := cmd.Args[0].(*parse.IdentifierNode)
	if !ok {
		return types[0]
	}
	switch id.Ident {
	case "index":
		if len(types) < 2 {
			return ""
		}
		is := types[1]
		for range types[2:] {
			is = c.elem(is)
		}
		return is
	case "json", "print", "printf", "println", "html", "js", "urlquery":
		return text
	}
	return ""
}

func (c *checker) arg(dot string, n parse.Node) string {
	switch n := n.(type) {
	case *parse.DotNode:
		return dot
	case *parse.FieldNode:
		return c.chain(n, dot, n.Ident)
	case *parse.ChainNode:
		return c.chain(n, c.arg(dot, n.Node), n.Field)
	case *parse.VariableNode:
		for _, v := range slices.Backward(c.vars) {
			if v.name == n.Ident[0] {
				return c.chain(n, v.is, n.Ident[1:])
			}
		}
	case *parse.PipeNode:
		return c.pipe(dot, n)
	case *parse.StringNode:
		return text
	}
	return ""
}

// chain returns the type of a field of a field of a type.
func (c *checker) chain(at parse.Node, is string, names []string) string {
	for _, name := range names {
		t := c.shape.GetTypes()[is]
		if t == nil {
			return ""
		}
		next, ok := t.Fields[name]
		switch {
		case ok:
			is = next
		case t.Named:
			is = t.Elem
		default:
			where, what := c.tree.ErrorContext(at)
			c.errs = append(c.errs, fmt.Errorf("%s: %s: there is no %s in %s", where, what, name, describe(is, t)))
			return ""
		}
	}
	return is
}

// describe names a type and, if they are few, its fields.
func describe(is string, t *millracev1.TypeShape) string {
	if is == "data" || is == "tables" {
		names := make([]string, 0, len(t.Fields))
		for name := range t.Fields {
			names = append(names, name)
		}
		slices.Sort(names)
		return fmt.Sprintf("the %s, which has %s", is, strings.Join(names, ", "))
	}
	return is
}

func (c *checker) elem(is string) string { return c.shape.GetTypes()[is].GetElem() }
