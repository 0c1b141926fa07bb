package limit

// stepShare is what the instance owns of a step.
type stepShare struct{ own, of int }

// Join implements [llm.Sharer]: each step that joined has an equal part of the limits,
// and of it this instance the part of the step's partitions that it owns, none at first.
// So the parts of all instances add up to the limits, while a partition moves too: who
// loses it gives its part up first. The part of a step that has nothing to do is not
// lent to others: give steps of very different load limits of their own.
func (l *Limits) Join(step string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.steps[step] == nil {
		l.steps[step] = &stepShare{of: 1}
		l.reckon()
	}
}

// Own implements [llm.Sharer].
func (l *Limits) Own(step string, partitions int) (release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.steps[step]
	if s == nil {
		s = &stepShare{}
		l.steps[step] = s
	}
	s.own, s.of = s.own+1, max(partitions, 1)
	l.reckon()
	released := false
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !released {
			released = true
			s.own--
			l.reckon()
		}
	}
}

// reckon works the share out again.
func (l *Limits) reckon() {
	sum := 0.0
	for _, s := range l.steps {
		sum += min(float64(s.own)/float64(s.of), 1)
	}
	l.setShare(sum / float64(len(l.steps)))
}
