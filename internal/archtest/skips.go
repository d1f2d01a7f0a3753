package archtest

import (
	"go/ast"
	"slices"
)

// skips returns the calls that skip a test or benchmark. A *rapid.T has the same methods with another
// meaning: it draws anew.
func skips(file *ast.File) []*ast.CallExpr {
	var calls []*ast.CallExpr
	var within func(n ast.Node, testers []string)
	within = func(n ast.Node, testers []string) {
		ast.Inspect(n, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Body != nil {
					within(n.Body, withParams(testers, n.Type))
				}
				return false
			case *ast.FuncLit:
				within(n.Body, withParams(testers, n.Type))
				return false
			case *ast.CallExpr:
				if sel, ok := n.Fun.(*ast.SelectorExpr); ok && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) {
					if id, ok := sel.X.(*ast.Ident); ok && slices.Contains(testers, id.Name) {
						calls = append(calls, n)
					}
				}
			}
			return true
		})
	}
	within(file, nil)
	return calls
}

// withParams returns the names that stand for a testing.T, B or TB in a function of this type.
func withParams(outer []string, f *ast.FuncType) []string {
	testers := slices.Clone(outer)
	for _, field := range f.Params.List {
		for _, name := range field.Names {
			testers = slices.DeleteFunc(testers, func(t string) bool { return t == name.Name })
			if isTester(field.Type) {
				testers = append(testers, name.Name)
			}
		}
	}
	return testers
}

func isTester(t ast.Expr) bool {
	if star, ok := t.(*ast.StarExpr); ok {
		t = star.X
	}
	sel, ok := t.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	pkg, ok := sel.X.(*ast.Ident)
	return ok && pkg.Name == "testing"
}
