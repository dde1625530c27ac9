/** The coordinator's end of a process that measures. See protocol.ts. */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { join } from 'node:path';

/** Program and arguments. */
export type Command = readonly [program: string, ...args: string[]];

/** The process that measures the methods of this package, and the one that draws inputs. */
export const OWN_PROCESS: Command = [process.execPath, '--expose-gc', join(__dirname, 'child.js')];
export const DRAWING_PROCESS: Command = [process.execPath, join(__dirname, 'draw.js')];

/** What a reply says when there is none. */
export interface Silence {
  readonly status: 'failed';
  readonly reason: string;
}

export class Participant {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #ended: Promise<void>;
  #errors = '';
  #end: Silence | undefined;
  #resolve: ((reply: object) => void) | undefined;

  constructor([program, ...args]: Command) {
    this.#child = spawn(program, args, { stdio: 'pipe', windowsHide: true });
    this.#ended = new Promise((resolve) => {
      const end = (reason: string): void => {
        this.#finish(reason);
        resolve();
      };
      this.#child.once('error', (error) => end(error.message));
      this.#child.once('close', (code, signal) => {
        const told = this.#errors.trim().split('\n').at(-1);
        end(`the process ended (${signal ?? `code ${code}`})${told ? `: ${told}` : ''}`);
      });
    });
    this.#child.stdin.on('error', () => {}); // it has ended: said by 'close'
    this.#child.stderr.on('data', (text: Buffer) => {
      this.#errors = (this.#errors + text.toString()).slice(-2000);
    });
    createInterface({ input: this.#child.stdout }).on('line', (line) => this.#receive(line));
  }

  #finish(reason: string): void {
    this.#end ??= { status: 'failed', reason };
    this.#resolve?.(this.#end);
  }

  /** Lines that are no objects are what libraries print. */
  #receive(line: string): void {
    if (!line.startsWith('{')) return;
    try {
      this.#resolve?.(JSON.parse(line) as object);
      this.#resolve = undefined;
    } catch {
      this.#errors += line;
    }
  }

  /** One request, one reply; never rejects. */
  async ask<Reply extends object>(request: object): Promise<Reply | Silence> {
    if (this.#end !== undefined) return this.#end;
    const reply = new Promise<object>((resolve) => {
      this.#resolve = resolve;
    });
    this.#child.stdin.write(`${JSON.stringify(request)}\n`);
    return (await reply) as Reply | Silence;
  }

  /** Lets the process end by itself, and waits for it. */
  async close(): Promise<void> {
    this.#child.stdin.end();
    await this.#ended;
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }
}
