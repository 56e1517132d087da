// What is called from outside.
#pragma once

template <class Work>
static void in_parallel(int64_t workers, Work work) {
  std::vector<std::thread> others;
  for (int64_t w = 1; w < workers; ++w) others.emplace_back(work, w);
  work(0);
  for (std::thread& other : others) other.join();
}

extern "C" {
void* pn_solve(const Solve* job) {
  const int64_t workers = job->threads;
  Tapes* tapes = new Tapes;
  tapes->of.resize(job->keep ? workers : 0);
  Uniform* c = &tapes->c;
  c->fill(job->uniform);
  in_parallel(workers, [&](int64_t w) {
    Forward* forward = new Forward(*job, *c, job->keep ? &tapes->of[w] : nullptr, job->rows * w / workers, job->rows * (w + 1) / workers);
    forward->run();
    delete forward;
  });
  if (job->keep) return tapes;
  delete tapes;
  return nullptr;
}

void pn_pull(void* handle, const Pull* job) {
  Tapes* tapes = (Tapes*)handle;
  const Uniform* c = &tapes->c;
  const int64_t workers = (int64_t)tapes->of.size();
  std::vector<Gradients*> gradients;
  for (int64_t w = 0; w < workers; ++w) gradients.push_back(new Gradients());
  in_parallel(workers, [&](int64_t w) {
    Backward* backward = new Backward(*job, *c, tapes->of[w], *gradients[w]);
    backward->run();
    delete backward;
  });
  for (int64_t w = 1; w < workers; ++w) gradients[0]->join(*gradients[w]);
  for (int64_t row = 0; row < job->rows; ++row) {  // outputs that are y0 itself
    if (job->status[row] != OK) continue;
    for (Cursor times(job->ts + row * job->ts_stride, job->times, job->direction[row]); !times.done(); times.at += times.by) {
      if (times.time() != job->t0[row]) break;
      const Scalar* g = job->cotangents + (row * job->times + times.at) * DIM;
      for (int d = 0; d < DIM; ++d) job->to_y0[row * DIM + d] += g[d];
    }
  }
  gradients[0]->hand_on(*c, job->to_uniform);
  for (Gradients* each : gradients) delete each;
}

// The field alone at one time and state of each trajectory.
void pn_field(const Solve* job) {
  Uniform* c = new Uniform;
  c->fill(job->uniform);
  for (int64_t first = 0; first < job->rows; first += LANES) {
    PN_ALIGNED Lanes lanes;
    PN_ALIGNED S y[DIM], out[DIM];
    for (int l = 0; l < LANES; ++l) {
      const int64_t row = first + l < job->rows ? first + l : first;
      lanes.t0[l] = job->t0[row];
      for (int i = 0; i < DIM; ++i) y[i][l] = job->y0[row * DIM + i];
      for (int i = 0; i < ARGS; ++i) lanes.args[i][l] = job->args[row * ARGS + i];
    }
    field(*c, lanes.t0, y, lanes.args, out);
    for (int l = 0; l < LANES && first + l < job->rows; ++l)
      for (int i = 0; i < DIM; ++i) job->derivative[(first + l) * DIM + i] = out[i][l];
  }
  delete c;
}

// Whether the field gives what is said, to a part `tolerance` of its largest component, or of y0 over the length of the solve.
int64_t pn_agrees(const Solve* job, const Scalar* says, double tolerance) {
  std::vector<Scalar> found(job->rows * DIM);
  Solve own = *job;
  own.derivative = found.data();
  pn_field(&own);
  for (int64_t row = 0; row < job->rows; ++row) {
    double scale = 0, size = 0;
    for (int i = 0; i < DIM; ++i) {
      scale = s_maximum(scale, (double)std::fabs(says[row * DIM + i]));
      size = s_maximum(size, (double)std::fabs(job->y0[row * DIM + i]));
    }
    scale = s_maximum(scale, size / std::fabs(job->t1[row] - job->t0[row]));
    if (!std::isfinite(scale)) continue;
    for (int i = 0; i < DIM; ++i)
      if (!(std::fabs(found[row * DIM + i] - says[row * DIM + i]) <= tolerance * scale)) return 0;
  }
  return 1;
}

// What the field at one time and state of each trajectory owes, for given cotangents of its values.
void pn_transpose(const Solve* job, const Pull* pull) {
#if PN_DIFFERENTIABLE
  Uniform* c = new Uniform;
  c->fill(job->uniform);
  Gradients* gradients = new Gradients();
  for (int64_t first = 0; first < job->rows; first += LANES) {
    PN_ALIGNED Lanes lanes;
    PN_ALIGNED S y[DIM], w[DIM], out[DIM], to_args[ARGS + 1];
    for (int l = 0; l < LANES; ++l) {
      const int64_t row = first + l < job->rows ? first + l : first;
      lanes.t0[l] = job->t0[row];
      for (int i = 0; i < DIM; ++i) y[i][l] = job->y0[row * DIM + i], w[i][l] = row == first + l ? pull->cotangents[row * DIM + i] : 0;
      for (int i = 0; i < ARGS; ++i) lanes.args[i][l] = job->args[row * ARGS + i], to_args[i][l] = 0;
    }
    Saved_field save;
    field_save(*c, lanes.t0, y, lanes.args, out, save);
    field_pull(*c, *gradients, save, w, y, to_args);
    for (int l = 0; l < LANES && first + l < job->rows; ++l) {
      for (int i = 0; i < DIM; ++i) pull->to_y0[(first + l) * DIM + i] = y[i][l];
      for (int i = 0; i < ARGS; ++i) pull->to_args[(first + l) * ARGS + i] = to_args[i][l];
    }
  }
  gradients->flush();
  gradients->hand_on(*c, pull->to_uniform);
  delete gradients;
  delete c;
#endif
}

int64_t pn_bytes(const void* handle) {
  int64_t bytes = 0;
  for (const Tape& tape : ((const Tapes*)handle)->of)
    bytes += (int64_t)(tape.blocks.size() * Tape::BLOCK_RECORDS * sizeof(Record) + tape.assignments.capacity() * sizeof(Assignment));
  return bytes;
}

// Times and states of accepted steps, slot by slot: t, t_end (slots, rows), y (slots, rows, DIM).
void pn_records(const void* handle, int64_t rows, double* t, double* t_end, Scalar* y) {
  for (const Tape& tape : ((const Tapes*)handle)->of) {
    int64_t row[LANES], slot[LANES];
    size_t entry = 0;
    for (int64_t n = 0; n < tape.count; ++n) {
      for (; entry < tape.assignments.size() && tape.assignments[entry].record <= n; ++entry) {
        row[tape.assignments[entry].lane] = tape.assignments[entry].row;
        slot[tape.assignments[entry].lane] = 0;
      }
      const Record& record = tape.blocks[n / Tape::BLOCK_RECORDS][n % Tape::BLOCK_RECORDS];
      for (int l = 0; l < LANES; ++l)
        if (record.mask >> l & 1) {
          const int64_t at = slot[l]++ * rows + row[l];
          t[at] = record.t[l];
          t_end[at] = record.t_end[l];
          for (int d = 0; d < DIM; ++d) y[at * DIM + d] = record.y[d][l];
        }
    }
  }
}

void pn_free(void* handle) { delete (Tapes*)handle; }
}
