package state

// Largest returns the store and the size in bytes of key and value of the largest
// row put since Begin; 0 if there is none.
func (p *Partition) Largest() (store string, size int) {
	for _, u := range p.undo {
		if n := len(u.entry.key) + len(u.entry.value); n > size {
			store, size = u.store.Spec.Name, n
		}
	}
	return store, size
}
