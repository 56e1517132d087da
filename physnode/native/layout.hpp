// What goes in and out of a solve and of its backward sweep, and what is remembered between them.
#pragma once

constexpr int64_t RUNNING = -1, OK = 0;
constexpr double EPS4 = 4 * 2.220446049250313e-16;

struct Solve {  // what a solve is given and what it fills in
  int64_t rows, times;
  const double *t0, *t1, *direction, *ts;
  int64_t ts_stride;
  const Scalar *y0, *args;
  Scalar *ys, *last, *derivative;
  int64_t *status, *accepted, *rejected, *evaluations;
  double *reached, *tried;
  const void* const* uniform;
  int64_t keep, threads;
};
struct Pull {  // what a backward sweep is given and what it fills in
  int64_t rows;
  const double *t0, *direction, *ts;
  int64_t ts_stride, times;
  const Scalar *args, *cotangents;
  const int64_t* status;
  Scalar *to_y0, *to_args;
  double* const* to_uniform;
};

struct PN_ALIGNED Record {
  D t, t_end;
  S y[DIM];
  int64_t mask;
};
struct Assignment {
  int64_t record, row;
  int lane;
};
struct Tape {
  static constexpr int64_t BLOCK_RECORDS = sizeof(Record) > 16384 ? 16 : 65536 / sizeof(Record) + 1;
  std::vector<Record*> blocks;
  std::vector<Assignment> assignments;
  int64_t count = 0;
  Record& at(int64_t n) { return blocks[n / BLOCK_RECORDS][n % BLOCK_RECORDS]; }
  Record& next() {
    if (count == (int64_t)blocks.size() * BLOCK_RECORDS) blocks.push_back(new Record[BLOCK_RECORDS]);
    return at(count);
  }
  ~Tape() { for (Record* block : blocks) delete[] block; }
};
struct Tapes {
  std::vector<Tape> of;
  Uniform c;  // what the solve has seen, whatever becomes of the tensors afterwards
};

// What one trajectory needs beside its state, for all lanes.
struct PN_ALIGNED Lanes {
  D t0, t1, direction;
  S args[ARGS + 1];
  State state;
  int64_t row[LANES];
};

template <class V> PN_INLINE void copy_lane(V* to, int lane, const V* from, int other, int count) {
  for (int i = 0; i < count; ++i) to[i][lane] = from[i][other];
}
static void copy_state(State& to, int lane, const State& from, int other) {
  copy_lane(to.s, lane, from.s, other, STATE_S);
  copy_lane(to.d, lane, from.d, other, STATE_D);
  copy_lane(to.m, lane, from.m, other, STATE_M);
}

