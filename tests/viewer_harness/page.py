"""A page with nothing but the viewer; the address says what it shows."""

import streamlit as st

from pages._viewer import viewer
from tests.viewer_harness.subject import data

st.set_page_config(page_title="Viewer", layout="wide")
query = st.query_params
maps = tuple(query.get("maps", "a").split(","))
swapped = st.toggle("Other map", key="swap")
given = data("/api/volume/run/phantom", ("b",) if swapped else maps, healthy="healthy" in query)
threshold = query.get("threshold", "healthy")
state = {"threshold": threshold if threshold.isalpha() else float(threshold)}
state |= {name: int(query[name]) for name in "xyz" if name in query}
state |= {"categories": True} if "categories" in query else {}
state |= {"category": query["category"]} if "category" in query else {}
if st.button("Go to 10, 20, 30"):
    state |= {"x": 10, "y": 20, "z": 30}
if "missing" in query:
    given["image_url"] = "/api/volume/run/phantom/nothing"
view = viewer(given | {"state": state}, key="viewer")
place = f"{view['x']}, {view['y']}, {view['z']}" if view else "nothing yet"
st.caption(f"Python has: {place}")
