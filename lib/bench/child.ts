/** The process of one case of this package: see protocol.ts. */
import { serve } from './protocol';
import { prepareSubject } from './subject';

void serve(prepareSubject);
