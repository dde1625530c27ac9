/**
 * A progress bar on a terminal, a line per task elsewhere. It is small and has no more to do than
 * this, so the package needs no dependency for it.
 */
import type { WriteStream } from 'node:tty';

const WIDTH = 24;

export class Progress {
  readonly #stream: WriteStream;
  #last = '';

  constructor(stream: WriteStream) {
    this.#stream = stream;
  }

  /** @param share of the whole that is done, 0 to 1 */
  show(share: number, task: string): void {
    if (!this.#stream.isTTY) {
      if (task.startsWith('checking') && task !== this.#last) this.#stream.write(`${task}\n`);
      this.#last = task;
      return;
    }
    const filled = Math.round(WIDTH * Math.min(Math.max(share, 0), 1));
    const bar = '█'.repeat(filled) + '░'.repeat(WIDTH - filled);
    const line = `${bar} ${(100 * share).toFixed(0).padStart(3)} %  ${task}`;
    const columns = this.#stream.columns || 80;
    this.#stream.write(
      `\r\x1b[2K${Array.from(line)
        .slice(0, columns - 1)
        .join('')}`,
    );
  }

  /** Takes the bar away, so that other text can be written. */
  clear(): void {
    if (this.#stream.isTTY) this.#stream.write('\r\x1b[2K');
  }
}
