/** Weights to start from, of PyTorch or of a run of this program: their parameters have the same names. */
import { SafetensorsError, SafetensorsFile, type Tensor } from 'cluster-attention/safetensors';
import { fill } from './checkpoint';
import type { Parameters } from './parameters';

/** Names in the state dict of an `nn.TransformerEncoder`; `norm` is its norm after the last layer. */
const ENCODER = /^(layers|norm)\./;

/**
 * Fills a model from a safetensors file. In the file, the encoder's names start with `prefix`, and
 * there are all of them and no others: neither a layer nor a bias is left out silently. Embeddings,
 * classifier, and what a kind of attention adds are filled if the file has them, under their names
 * here without prefix.
 * @throws SafetensorsError before anything is overwritten
 */
export function loadPretrained(path: string, prefix: string, { all }: Parameters): void {
  const file = new SafetensorsFile(path);
  try {
    for (const name of file.tensors.keys()) {
      const inner = name.startsWith(prefix) ? name.slice(prefix.length) : '';
      if (ENCODER.test(inner) && !all.has(inner)) {
        throw new SafetensorsError(path, `the encoder has no parameter for ${name}`);
      }
    }
    const targets = new Map<string, Tensor>();
    for (const [name, { shape, value }] of all) {
      if (ENCODER.test(name)) targets.set(prefix + name, { shape, data: value });
      else if (file.tensors.has(name)) targets.set(name, { shape, data: value });
    }
    fill(targets, file);
  } finally {
    file.close();
  }
}
