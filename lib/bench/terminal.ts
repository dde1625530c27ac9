/** A command at a terminal: what it prints, and how it ends. */
import { UsageError } from './usage';

/** Control characters as \x1b and the like: names in files are anybody's, a terminal obeys them. */
export const visible = (text: string): string =>
  text.replaceAll(/\p{Cc}/gu, (one) => `\\x${one.codePointAt(0)!.toString(16).padStart(2, '0')}`);

/** The message of an error, without line breaks. */
export const messageOf = (error: unknown): string =>
  (error instanceof Error ? error.message : String(error)).replaceAll(/\s*\n\s*/g, ' ');

/** Writes lines to standard output; runCommand notices when they cannot be written. */
export function print(text: string): void {
  process.stdout.write(`${text.split('\n').map(visible).join('\n')}\n`);
}

/** What ends a run before its time. */
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
const OUTPUTS = [process.stdout, process.stderr];

/** Waits for `run`; meanwhile a signal, or output that cannot be written, calls `interrupt`. */
export async function interruptible<T>(run: () => Promise<T>, interrupt: () => void): Promise<T> {
  for (const signal of SIGNALS) process.on(signal, interrupt);
  for (const output of OUTPUTS) output.on('error', interrupt);
  try {
    return await run();
  } finally {
    for (const signal of SIGNALS) process.off(signal, interrupt);
    for (const output of OUTPUTS) output.off('error', interrupt);
  }
}

/** The exit code of a program that SIGPIPE ended, which Node ignores. */
const READER_GONE = 141;

/**
 * Runs a command and sets the exit code: what it returns, 2 for a UsageError, 1 for another. Output
 * that cannot be written is an error, but a reader who left, as `head` does, is told nothing.
 */
export async function runCommand(name: string, command: () => Promise<number>): Promise<void> {
  const complain = (text: string): unknown => process.stderr.write(`${name}: ${visible(text)}\n`);
  let lost: number | undefined;
  for (const output of OUTPUTS) {
    output.on('error', (error: NodeJS.ErrnoException) => {
      if (lost !== undefined) return;
      lost = error.code === 'EPIPE' ? READER_GONE : 1;
      if (lost === 1) complain(`cannot write the output: ${messageOf(error)}`);
    });
  }
  process.on('exit', () => {
    if (lost !== undefined) process.exitCode = lost; // it may come to light after the last line
  });
  try {
    process.exitCode = await command();
  } catch (error) {
    complain(messageOf(error));
    process.exitCode = error instanceof UsageError ? 2 : 1;
  }
}
