"""Files of questions and judgements for tests."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from deploy.label.desk import Desk
from deploy.label.judgements import Judgement, LabelFile, Question
from deploy.label.questions import open_source
from deploy.label.server import label_page
from deploy.pages.frame import frame_app

ORIGIN = "http://127.0.0.1:8266"


def asked(folder: Path, count: int = 4, answers: int = 2) -> Path:
    path = folder / "asked.jsonl"
    rows = [
        {"prompt": f"prompt {i}", "answers": [f"answer {i}.{k}" for k in range(answers)]}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Page:
    """The page of a file, by its API."""

    def __init__(self, path: Path, shared: float = 0.0, clock: Any = time.time):
        self.source = open_source(str(path))
        self.file = LabelFile(self.source.labels)
        self.desk = Desk(self.source.questions, self.file, shared, clock)
        app = frame_app(label_page(self.source, self.desk), "127.0.0.1", 8266, None)
        self.web = TestClient(app, base_url=ORIGIN)
        self.made = 0

    def next(self, who: str = "anna") -> dict[str, Any]:
        return self.web.post("/api/next", json={"labeller": who}).json()

    def judge(self, who: str, question: str, **told: Any) -> Any:
        self.made += 1
        body = {"id": f"{who}-{question[:8]}-{self.made:08}", "labeller": who, "question": question}
        return self.web.post("/api/judge", json=body | told)

    def close(self) -> None:
        self.file.close()


def judged(question: Question, who: str, ranks: tuple[int, ...] | None, **more: Any) -> Judgement:
    verdict = more.pop("verdict", "ranked" if ranks else "all_bad")
    order = tuple(range(len(question.answers)))
    return Judgement(f"{who}-{question.id}", who, question, order, verdict, ranks, **more)
