/** A training run on disk: weights and moments as safetensors, the rest as metadata. */
import {
  readSafetensors,
  SafetensorsFile,
  writeSafetensors,
  type Tensor,
} from 'cluster-attention/safetensors';
import type { AdamW, Parameters } from './parameters';

/** What a run has seen at one step. */
export interface Record {
  readonly step: number;
  /** Since the record before. */
  readonly loss: number;
  readonly accuracy: number;
}

/** What must be the same for a run to be continued. */
export type Settings = Readonly<{ [name: string]: string | number }>;

/** Each parameter with its moments, under the names they have in a file. */
function* stored(parameters: Parameters, optimiser: AdamW): Generator<[string, Tensor]> {
  for (const [name, { shape, value }] of parameters.all) {
    const { first, second } = optimiser.moments.get(name)!;
    yield [name, { shape, data: value }];
    yield [`moments.first.${name}`, { shape, data: first }];
    yield [`moments.second.${name}`, { shape, data: second }];
  }
}

export function saveCheckpoint(
  path: string,
  parameters: Parameters,
  optimiser: AdamW,
  settings: Settings,
  history: readonly Record[],
): void {
  writeSafetensors(path, new Map(stored(parameters, optimiser)), {
    step: String(optimiser.step),
    settings: JSON.stringify(settings),
    history: JSON.stringify(history),
  });
}

/** Fills parameters and optimiser with what a file holds; returns the run's history. */
export function loadCheckpoint(
  path: string,
  parameters: Parameters,
  optimiser: AdamW,
  settings: Settings,
): Record[] {
  const file = new SafetensorsFile(path);
  const metadata = file.metadata;
  file.close();
  const found = metadata.get('settings');
  if (found !== JSON.stringify(settings)) {
    throw new Error(`${path} is of another run: ${found ?? 'no run of this program'}`);
  }
  const tensors = readSafetensors(path);
  for (const [name, { data }] of stored(parameters, optimiser)) {
    const tensor = tensors.get(name);
    if (tensor?.data.length !== data.length) throw new Error(`${path} does not hold ${name}`);
    data.set(tensor.data);
  }
  optimiser.step = Number(metadata.get('step'));
  return JSON.parse(metadata.get('history') ?? '[]') as Record[];
}
