package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func newManCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "man DIR",
		Short:   "Write the manual pages of all commands to DIR",
		Example: `  heraldfs man /usr/local/share/man/man1`,
		Hidden:  true,
		Args:    exactArgs(1, "DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			return writePages(cmd.Root(), args[0])
		},
	}
}

// writePages writes a page for c and each visible command below it.
func writePages(c *cobra.Command, dir string) error {
	c.InitDefaultHelpFlag()
	name := pageName(c) + ".1"
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	manPage(f, c)
	if err := f.Close(); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" {
			if err := writePages(sub, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// manPage writes roff for man(7).
func manPage(w io.Writer, c *cobra.Command) {
	name := pageName(c)
	fmt.Fprintf(w, ".TH %s 1 \"\" \"heraldfs\" \"heraldfs manual\"\n", roff(strings.ToUpper(name)))
	fmt.Fprintf(w, ".SH NAME\n%s \\- %s\n", roff(name), roff(c.Short))
	fmt.Fprintf(w, ".SH SYNOPSIS\n.B %s\n", roff(c.UseLine()))
	long := c.Long
	if long == "" {
		long = c.Short + "."
	}
	fmt.Fprint(w, ".SH DESCRIPTION\n")
	for i, para := range strings.Split(long, "\n\n") {
		if i > 0 {
			fmt.Fprint(w, ".PP\n")
		}
		if strings.HasPrefix(para, " ") || strings.Contains(para, "\n ") || strings.Contains(para, "  ") {
			verbatim(w, para)
		} else {
			fmt.Fprintf(w, "%s\n", roff(para))
		}
	}
	if c.HasAvailableFlags() {
		fmt.Fprint(w, ".SH OPTIONS\n")
		c.Flags().VisitAll(func(f *pflag.Flag) { manFlag(w, f) })
	}
	if c.Example != "" {
		fmt.Fprint(w, ".SH EXAMPLES\n")
		verbatim(w, c.Example)
	}
	var related []string
	if c.HasParent() {
		related = append(related, pageName(c.Parent()))
	}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" {
			related = append(related, pageName(sub))
		}
	}
	if len(related) > 0 {
		fmt.Fprint(w, ".SH SEE ALSO\n")
		for i, r := range related {
			end := ","
			if i == len(related)-1 {
				end = ""
			}
			fmt.Fprintf(w, ".BR %s (1)%s\n", roff(r), end)
		}
	}
}

func manFlag(w io.Writer, f *pflag.Flag) {
	if f.Hidden {
		return
	}
	value, usage := pflag.UnquoteUsage(f)
	fmt.Fprint(w, ".TP\n")
	if f.Shorthand != "" {
		fmt.Fprintf(w, "\\fB\\-%s\\fR, ", roff(f.Shorthand))
	}
	fmt.Fprintf(w, "\\fB\\-\\-%s\\fR", roff(f.Name))
	if value != "" {
		fmt.Fprintf(w, " \\fI%s\\fR", roff(value))
	}
	fmt.Fprintf(w, "\n%s", roff(usage))
	switch f.DefValue {
	case "", "false", "0", "0s", "[]":
	default:
		fmt.Fprintf(w, " (default %s)", roff(f.DefValue))
	}
	fmt.Fprintln(w)
}

func verbatim(w io.Writer, text string) {
	fmt.Fprintf(w, ".nf\n%s\n.fi\n", roff(text))
}

// roff escapes text; a line must not begin with a control character.
func roff(s string) string {
	s = strings.ReplaceAll(s, `\`, `\e`)
	s = strings.ReplaceAll(s, "-", `\-`)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
