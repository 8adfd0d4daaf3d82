// A queue that grows and shrinks at both ends, in a ring.

package exchange

type deque[T any] struct {
	ring []T
	head int
	size int
}

func (d *deque[T]) len() int { return d.size }

func (d *deque[T]) slot(i int) int { return (d.head + i) & (len(d.ring) - 1) }

func (d *deque[T]) at(i int) *T { return &d.ring[d.slot(i)] }

func (d *deque[T]) grow() {
	if d.size < len(d.ring) {
		return
	}
	ring := make([]T, max(16, 2*len(d.ring)))
	for i := range d.size {
		ring[i] = *d.at(i)
	}
	d.ring, d.head = ring, 0
}

func (d *deque[T]) pushBack(item T) {
	d.grow()
	d.size++
	*d.at(d.size - 1) = item
}

func (d *deque[T]) pushFront(item T) {
	d.grow()
	d.head = d.slot(len(d.ring) - 1)
	d.size++
	d.ring[d.head] = item
}

func (d *deque[T]) popFront() T {
	var zero T
	item := d.ring[d.head]
	d.ring[d.head] = zero
	d.head = d.slot(1)
	d.size--
	return item
}

// takeAll empties it.
func (d *deque[T]) takeAll() []T {
	items := make([]T, 0, d.size)
	for d.size > 0 {
		items = append(items, d.popFront())
	}
	d.ring, d.head = nil, 0
	return items
}
