// A pool of worker threads: as many tasks at a time as there are workers, the others wait in a
// queue of bounded length. A worker that dies fails its task and is replaced; one that ends before
// it was of any use is not, since another would end as well.
import { Worker } from 'node:worker_threads';

export class QueueFullError extends Error {}

export class WorkerPool {
  #script;
  #longestQueue;
  #idle = [];
  #busy = new Map(); // worker -> its task
  #queue = [];
  #closed = false;
  #fault; // of the last worker that was not replaced

  constructor(script, workers, longestQueue = 64) {
    this.#script = script;
    this.#longestQueue = longestQueue;
    for (let i = 0; i < workers; ++i) this.#idle.push(this.#start());
  }

  /** How many tasks run and wait at this moment. */
  get load() {
    return { running: this.#busy.size, waiting: this.#queue.length };
  }

  /** The answer of a worker to `message`; `transfer` lists the buffers that move to it. */
  run(message, transfer = [], signal = undefined) {
    if (this.#closed) return Promise.reject(new Error('the pool is closed'));
    if (signal?.aborted) return Promise.reject(signal.reason);
    if (this.#idle.length + this.#busy.size === 0) return Promise.reject(this.#fault);
    if (this.#idle.length === 0 && this.#queue.length >= this.#longestQueue) {
      return Promise.reject(new QueueFullError('too many tasks are waiting'));
    }
    return new Promise((resolve, reject) => {
      const task = { message, transfer, resolve, reject };
      // A task that still waits can be given up; one that runs ends on its own.
      signal?.addEventListener('abort', () => this.#withdraw(task, signal.reason), { once: true });
      this.#queue.push(task);
      this.#next();
    });
  }

  /** Ends all workers; what waits or runs is rejected. */
  async close() {
    this.#closed = true;
    for (const task of this.#queue.splice(0)) task.reject(new Error('the pool is closed'));
    await Promise.all([...this.#idle, ...this.#busy.keys()].map((worker) => worker.terminate()));
  }

  #withdraw(task, reason) {
    const place = this.#queue.indexOf(task);
    if (place < 0) return;
    this.#queue.splice(place, 1);
    task.reject(reason);
  }

  #next() {
    while (this.#idle.length > 0 && this.#queue.length > 0) {
      const worker = this.#idle.pop();
      const task = this.#queue.shift();
      this.#busy.set(worker, task);
      worker.postMessage(task.message, task.transfer);
    }
  }

  #start() {
    const worker = new Worker(this.#script);
    let answered = false;
    let fault = new Error('the worker ended before its task');
    worker.on('message', (answer) => {
      answered = true;
      const task = this.#busy.get(worker);
      this.#busy.delete(worker);
      this.#idle.push(worker);
      if (answer.failure === undefined) task.resolve(answer);
      else task.reject(Object.assign(new Error(answer.failure.message), answer.failure));
      this.#next();
    });
    worker.on('error', (error) => (fault = error));
    worker.on('exit', () => {
      const task = this.#busy.get(worker);
      task?.reject(fault);
      this.#busy.delete(worker);
      this.#idle = this.#idle.filter((other) => other !== worker);
      if (this.#closed) return;
      if (task === undefined && !answered) {
        this.#fault = fault;
        return;
      }
      this.#idle.push(this.#start());
      this.#next();
    });
    return worker;
  }
}
