"""What an inference API costs without promises: FastAPI with the same validation and the same model, one row at a time, no log."""

import gc
import sys

import uvicorn
from fastapi import FastAPI
from threadpoolctl import threadpool_limits

from mlops_core.package import load_model
from mlops_core.scoring import RequestLimits, frame_of, make_live

live = make_live(load_model(sys.argv[1]), RequestLimits())
gc.freeze()  # as ours: the collector would look through all that was imported
app = FastAPI()


@app.get("/live")
async def alive():
    return {"status": "alive"}


@app.post("/v1/predict")
async def predict(ask: live.ask):
    return {"answers": live.loaded.answer(frame_of(live, ask.rows)).to_dict("records")}


if __name__ == "__main__":
    with threadpool_limits(1):
        uvicorn.run(app, port=int(sys.argv[2]), access_log=False, log_level="warning")
