package keyserver

import "sync"

// pool answers requests with a fixed number of workers and a bounded queue.
type pool struct {
	jobs chan func()
	wg   sync.WaitGroup

	mu     sync.RWMutex // guards closed against jobs
	closed bool
}

func newPool(workers, queue int) *pool {
	p := &pool{jobs: make(chan func(), queue)}
	for range workers {
		p.wg.Go(func() {
			for job := range p.jobs {
				job()
			}
		})
	}
	return p
}

// submit queues job, or answers false at once when the queue is full or closed.
func (p *pool) submit(job func()) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return false
	}
	select {
	case p.jobs <- job:
		return true
	default:
		return false
	}
}

// depth is how many jobs wait.
func (p *pool) depth() int { return len(p.jobs) }

// close takes no more jobs and waits until the queued ones are done.
func (p *pool) close() {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.jobs)
	}
	p.mu.Unlock()
	p.wg.Wait()
}
