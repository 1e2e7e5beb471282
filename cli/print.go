package cli

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// table prints rows under a head, each column as wide as it needs.
type table struct {
	head  []string
	rows  [][]string
	right []bool // columns of numbers
}

// columns makes a table; a head that begins with > is a column of numbers.
func columns(head ...string) *table {
	t := &table{}
	for _, h := range head {
		name, right := strings.CutPrefix(h, ">")
		t.head = append(t.head, name)
		t.right = append(t.right, right)
	}
	return t
}

func (t *table) row(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = clean(fmt.Sprint(c))
		if row[i] == "" {
			row[i] = "-"
		}
	}
	t.rows = append(t.rows, row)
}

func (t *table) print(w io.Writer) {
	width := make([]int, len(t.head))
	all := append([][]string{t.head}, t.rows...)
	for _, row := range all {
		for i, c := range row {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	for _, row := range all {
		var b strings.Builder
		for i, c := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if i > 0 {
				b.WriteString("  ")
			}
			if t.right[i] {
				b.WriteString(pad + c)
			} else {
				b.WriteString(c + pad)
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}

// clean takes out what could steer a terminal: other nodes choose their names.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
}

// who names a node: by its name if it has one, else by its id.
func who(name, id string) string {
	if name = clean(name); name != "" {
		return name
	}
	return id
}

// count prints so many things.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// micros prints microseconds as milliseconds.
func micros[T int64 | uint32](us T) string {
	if us == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f ms", float64(us)/1000)
}

// size prints bytes.
func size(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), ""
	for _, u := range []string{"kB", "MB", "GB", "TB", "PB", "EB"} {
		if v < 1000 {
			break
		}
		v, unit = v/1000, u
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}

// span prints seconds as people say them.
func span(seconds int64) string {
	d := time.Duration(seconds) * time.Second
	switch {
	case d < 0:
		return "never"
	case d < time.Minute:
		return fmt.Sprintf("%d s", seconds)
	case d < time.Hour:
		return fmt.Sprintf("%d min", seconds/60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", seconds/3600, seconds/60%60)
	}
	return fmt.Sprintf("%d days", seconds/86400)
}

// since prints how long ago t was, nothing for the zero time.
func since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return span(max(int64(time.Since(t).Seconds()), 0))
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
