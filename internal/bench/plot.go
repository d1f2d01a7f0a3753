package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"os"
	"path/filepath"
)

// group is a row of a plot: the same work, done by each peer.
type group struct {
	name   string
	ratios []float64
}

// colours tell peers apart, also for who sees few colours, and on dark and light pages. Ours are blue.
var colours = []string{"#0072b2", "#56b4e9", "#003a5c", "#e69f00", "#009e73", "#cc79a7", "#999999"}

// plot draws the ratios as bars over a logarithmic axis.
func plot(title string, names []string, groups []group) []byte {
	const (
		left, width                = 240, 520
		bar, gap                   = 9, 8
		legend, inRow, entry, line = 24, 4, 190, 16
	)
	top := legend + (len(names)+inRow-1)/inRow*line + 24
	most := 1.0
	for _, g := range groups {
		for _, r := range g.ratios {
			most = max(most, r)
		}
	}
	least := 0.5
	x := func(r float64) float64 {
		r = min(max(r, least), most)
		return left + width*math.Log(r/least)/math.Log(most/least)
	}
	height := top + len(groups)*(len(names)*bar+gap) + 30
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", left+width+60, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n"+`<text x="10" y="20" font-size="14">%s</text>`+"\n", html.EscapeString(title))
	for i, n := range names {
		at, down := 10+i%inRow*entry, legend+i/inRow*line
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="10" height="10" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n",
			at, down+6, colours[i%len(colours)], at+14, down+15, html.EscapeString(n))
	}
	for r := least; r <= most; r *= 2 {
		colour := "#dddddd"
		if r == 1 {
			colour = "#000000"
		}
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="%s"/><text x="%.1f" y="%d" text-anchor="middle">%g</text>`+"\n",
			x(r), top-8, x(r), height-24, colour, x(r), height-10, r)
	}
	y := top
	for _, g := range groups {
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", left-8, y+len(names)*bar/2+4, html.EscapeString(g.name))
		for i, r := range g.ratios {
			if r == 0 { // failed
				y += bar
				continue
			}
			from, to := min(x(1), x(r)), max(x(1), x(r))
			fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d" font-size="8">%.2f</text>`+"\n",
				from, y, max(to-from, 1), bar-1, colours[i%len(colours)], to+3, y+bar-2, r)
			y += bar
		}
		y += gap
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// plots writes what was measured as pictures to dir.
func (b *bench) plots(dir string) error {
	if len(b.bars) == 0 {
		return nil
	}
	return os.WriteFile(filepath.Join(dir, "bench-files.svg"), plot("Time, as a multiple of the native directory's (logarithmic)", b.columns, b.bars), 0o644)
}
