#!/usr/bin/env node
/** `npx cluster-attention info`: what a person runs before trusting the package with a service. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const HELP = `Usage: cluster-attention <command>

Commands:
  info        version, instruction sets, threads, build and CUDA of this installation

Options:
  --help      this text
  --version   version of the package
`;

function packageVersion(): string {
  const file = join(__dirname, '..', 'package.json');
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version;
}

function printInfo(): void {
  const { info } = require('./info') as typeof import('./info'); // here: it loads the addon
  const { instructionSets, threads, build, cuda, version } = info();
  const lines = [
    ['version', version],
    ['node', `${process.version} ${process.platform}-${process.arch}`],
    ['build', build],
    ['instruction sets', `${instructionSets.found.join(', ')} (using ${instructionSets.used})`],
    ['threads', String(threads)],
    ['cuda', cuda.reason],
  ];
  for (const [name, value] of lines) console.log(`${name!.padEnd(18)}${value}`);
}

function main(command: string | undefined, surplus: readonly string[]): number {
  if (surplus.length > 0) {
    console.error(`cluster-attention: unexpected "${surplus[0]}"; see cluster-attention --help`);
    return 2;
  }
  switch (command) {
    case 'info':
      printInfo();
      return 0;
    case '--version':
    case '-v':
      console.log(packageVersion());
      return 0;
    case 'help':
    case '--help':
    case '-h':
      process.stdout.write(HELP);
      return 0;
    default: {
      const what = command === undefined ? 'no command' : `unknown command "${command}"`;
      console.error(`cluster-attention: ${what}; see cluster-attention --help`);
      return 2;
    }
  }
}

try {
  process.exitCode = main(process.argv[2], process.argv.slice(3));
} catch (error) {
  console.error(`cluster-attention: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}
