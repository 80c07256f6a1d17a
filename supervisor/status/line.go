package status

import (
	"fmt"
	"strings"
)

// Line is what `systemctl status` shows. node is what the node says of itself; "" = nothing.
func (st *Document) Line(node string) string {
	if st.Hold != nil {
		return st.Message
	}
	parts := []string{st.Message}
	if st.Version != nil {
		parts[0] += ", version " + *st.Version
	}
	if st.Height != nil {
		parts[0] += fmt.Sprintf(", height %d", *st.Height)
	}
	if p := st.Progress; p != nil {
		parts = append(parts, progressText(*p))
	}
	if node != "" {
		parts = append(parts, "the node: "+node)
	}
	return strings.Join(parts, "; ")
}

// progressText is "snapshot 43 % of 12.4 GB".
func progressText(p Progress) string {
	if p.Total <= 0 {
		return fmt.Sprintf("%s %s", p.Phase, byteText(p.Done))
	}
	return fmt.Sprintf("%s %d %% of %s", p.Phase, min(100, 100*p.Done/p.Total), byteText(p.Total))
}

// byteText renders a size with decimal units, as disks are sold.
func byteText(n int64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	size, i := float64(n)/1000, 0
	for ; size >= 999.95 && i < len(units)-1; i++ {
		size /= 1000
	}
	return fmt.Sprintf("%.1f %cB", size, units[i])
}
